"""METEOR and SPICE: their protocol, and Java programs that are missing, crash, hang or babble."""

import gzip
import itertools
import os
import re
import shutil
import stat
import subprocess
import zipfile

import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError, DataError, SparsecapError
from sparsecap_jax.evaluation import _paraphrases, java_scores, ptb_java
from sparsecap_jax.evaluation.java_scores import SPICE_JARS, meteor, meteor_of_sums, spice
from sparsecap_jax.evaluation.metrics import score_captions

needs_java = pytest.mark.skipif(not ptb_java.java_available(), reason="no java on the path")
needs_javac = pytest.mark.skipif(not shutil.which("javac"), reason="no javac on the path")
CAPTIONS = ["a big dog runs home", "two men", "", "x y z", "a cat sits on the mat"]
REFERENCES = [
    ["a large dog goes home", "the dog"],
    ["a pair of men walk", "two men"],
    ["nothing"],
    ["a b", "c"],
    ["a kitten is sitting on a rug", "the cat sat"],
]
ROWS = [
    ("big", "large"),
    ("two men", "a pair of men"),
    ("two men", "a pair of women"),
    ("runs home", "goes home"),
    ("home", "house"),
    ("t shirt", "pm"),
    ("t shirt", "usa"),
    ("caf\u00e9", "bar"),
    ("what ?", "why"),
    ("mat", "rug"),
]


@pytest.fixture
def paraphrases(tmp_path, monkeypatch):
    """A short table of paraphrases in the place of METEOR's."""
    path = tmp_path / "paraphrases.gz"
    text = "".join(f"0.{n + 1}\n{one}\n{two}\n" for n, (one, two) in enumerate(ROWS))
    path.write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr(java_scores, "_PARAPHRASES", path)
    monkeypatch.setattr(_paraphrases, "_BLOCK", 40)  # rows that lie across blocks
    return text


@pytest.fixture
def program(tmp_path, monkeypatch, paraphrases):
    """Put a script in the place of `java`."""

    def write(script):
        path = tmp_path / "bin/java"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return write


def kept(texts, path):
    lines = b"".join(_paraphrases.paraphrase_rows(path, texts)).decode().splitlines()
    return list(zip(lines[1::3], lines[2::3], strict=True))


def test_only_paraphrases_that_can_match_are_kept(paraphrases, tmp_path):
    path = tmp_path / "paraphrases.gz"
    always = [ROWS[7]]  # not plain words: METEOR may see them in ways of its own
    chosen = kept([*CAPTIONS, *itertools.chain(*REFERENCES)], path)
    assert chosen == [ROWS[0], ROWS[1], ROWS[3], ROWS[9]]
    # METEOR splits words at hyphens and drops the periods of acronyms.
    assert kept(["A T-shirt, 5 p.m.", "u.s.a. bar"], path) == [ROWS[5], ROWS[6], *always]
    assert kept(["t", "shirt pm bar why"], path) == [*always, ROWS[8]]


def kept_slowly(texts, rows):
    """Rows with two phrases of plain words that the texts have, and rows of other words."""
    phrases = set()
    for text in texts:
        for form in (text.lower(), re.sub(r"\.\.+", " ", text.lower()).replace(".", "")):
            words = re.findall("[0-9a-z]+", form)
            for size in range(1, 8):
                phrases |= {" ".join(words[at : at + size]) for at in range(len(words) - size + 1)}
    plain = re.compile("[0-9a-z ]*").fullmatch
    return [row for row in rows if all(of in phrases or not plain(of) for of in row)]


def test_no_row_is_missed_that_a_slow_search_keeps(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    words = ["".join(random.choice(letters, size)) for size in [1, 2, 3, 5, 8, 9, 13] * 3]
    words += ["U.S.", "p.m.", "what's", "caf\u00e9", "wait...what", "t-shirt", "a.b..c"]

    def phrase(longest):
        return " ".join(random.choice(words, random.integers(1, longest + 1)))

    texts = [phrase(12) for _ in range(40)]
    rows = [(phrase(3).lower(), phrase(2).lower()) for _ in range(3000)]
    parts = [" ".join(text.split()[1:8]) for text in texts]  # whole, cut, and a word too long
    rows += [(part, part[: 5 * n]) for n, part in enumerate(parts)]
    rows += zip(parts, texts, strict=True)
    path = tmp_path / "paraphrases.gz"
    path.write_bytes(gzip.compress("".join(f"0.5\n{a}\n{b}\n" for a, b in rows).encode()))
    monkeypatch.setattr(_paraphrases, "_BLOCK", 999)
    expected = kept_slowly(texts, rows)
    assert 500 < len(expected) < len(rows) - 500
    found = kept(texts, path)
    assert [row for row in found if row in expected] == expected
    assert len(found) == len(expected) + 2  # phrases that differ from the texts' in the middle


@needs_java
def test_a_reduced_table_leaves_the_scores_as_they_are(paraphrases, monkeypatch):
    texts = [*CAPTIONS, "a t-shirt at 5 p.m.", "why what ?", "made in the u.s.a. caf\u00e9 ..."]
    references = [*REFERENCES, ["the t shirt is pm", "usa"], ["what ?"], ["a bar in the usa"]]
    with meteor(texts, references) as running:
        reduced = running.result()
    monkeypatch.setattr(java_scores, "paraphrase_rows", lambda *_: [paraphrases.encode()])
    with meteor(texts, references) as running:
        whole = running.result()
    assert reduced[:2] == whole[:2]
    total, each, sums = whole
    assert len(set(each)) > 5 and 0 < total < 1
    np.testing.assert_allclose(meteor_of_sums(sums), each, rtol=1e-12)
    np.testing.assert_allclose(meteor_of_sums(sums.sum(axis=0)), total, rtol=1e-12)


def test_lines_are_shared_for_equal_times(monkeypatch):
    monkeypatch.setattr(java_scores, "_NORMALIZED", 2.0)
    even, odd = "SCORE a dog ||| dogs", "SCORE a dog ||| dog."
    assert java_scores._shared([even] * 4, 2) == ([False, False], [[0, 2], [1, 3]])
    assert java_scores._shared([even, odd, even, even, even], 1) == ([True], [[1, 0, 2, 3, 4]])
    # One line takes the process that normalises as long as two take the other.
    assert java_scores._shared([even, even, odd, even, even, odd, *[even] * 3], 2) == (
        [True, False],
        [[2, 5, 7], [0, 1, 3, 4, 6, 8]],
    )
    assert java_scores._shared([odd] * 4, 2) == ([True, True], [[0, 2], [1, 3]])
    for unusual in ("SCORE a | b ||| a", "SCORE A ||| a", "SCORE \u00e9 ||| a", "SCORE a\tb ||| a"):
        assert java_scores._shared([unusual], 1)[0] == [True]


@needs_java
def test_several_processes_that_normalise_where_needed(paraphrases, monkeypatch):
    """Equal to one process that normalises all text, which is what pycocoevalcap runs."""
    texts = [*CAPTIONS, "mr 1 000 no  5 pm", "st v 2 0", "isn't it", "a t-shirt , no. 5", "e.g. A."]
    references = [*REFERENCES, ["mr 1000", "no  5 pm"], ["saint v 20"], ["is not", "is n't"]]
    references += [["the t shirt"], ["for example a"]]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(java_scores, "_WORTH_ANOTHER", 1)
    with meteor(texts, references) as running:
        total, each, sums = running.result()
    monkeypatch.setattr(java_scores, "_shared", lambda lines, _: ([True], [range(len(lines))]))
    with meteor(texts, references) as running:
        whole = running.result()
    assert (total, each) == whole[:2] and len(set(each)) > 7
    np.testing.assert_array_equal(sums, whole[2])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo out of memory >&2; exit 3", "METEOR failed: out of memory"),
        ("exit 0", "METEOR failed: it ended before it had answered"),
        ("while read line; do echo nonsense; done", "METEOR failed: not numbers"),
        ("read line; echo 1.0 2.0; kill -9 $$", "METEOR failed: it ended before"),
        ("exec sleep 60", "METEOR failed: no answer within 1 s"),
        ("while read line; do :; done; exec sleep 60", "METEOR failed: no answer within 1 s"),
    ],
)
def test_a_meteor_that_crashes_hangs_or_babbles(script, message, program, monkeypatch):
    program(script)
    monkeypatch.setattr(java_scores, "_PATIENCE", 1.0)
    table = np.random.default_rng(0).bytes(1 << 20)  # more than a pipe holds that nobody reads
    monkeypatch.setattr(java_scores, "paraphrase_rows", lambda *_: [table])
    with pytest.raises(SparsecapError, match=message):
        score_captions(dict(enumerate(CAPTIONS)), dict(enumerate(REFERENCES)), ["METEOR", "CIDEr"])


def test_a_fault_of_another_score_ends_meteor(program, monkeypatch):
    program("exec sleep 60")
    with pytest.raises(DataError, match="the references hold no words"):
        score_captions({1: "a"}, {1: ["."]})


def test_a_java_that_cannot_run(program, tmp_path, monkeypatch):
    program("")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin/java").write_bytes(b"\x7fELF no program")
    with pytest.raises(SparsecapError, match="METEOR: java: Exec format error"):
        score_captions({1: "a"}, {1: ["a"]}, ["METEOR"])
    with pytest.raises(DataError, match="the Java tokenizer failed: Exec format error"):
        score_captions({1: "a"}, {1: ["a"]}, ["CIDEr"], "java")


def test_a_java_tokenizer_that_hangs_or_babbles(program, monkeypatch):
    monkeypatch.setattr(ptb_java, "_PATIENCE", 0.5)
    for script, message in (
        ("exec sleep 60", "the Java tokenizer failed: no end within 0 s"),
        ("echo a", "returned 2 lines for 3 captions"),
    ):
        program(script)
        with pytest.raises(DataError, match=message):
            score_captions({1: "a"}, {1: ["a", "b", "c"]}, ["CIDEr"], "java")


JAVA = """
package edu.anu.spice;
import java.nio.file.*;
public class SpiceScorer {
  public static void main(String[] args) throws Exception {
    java.lang.reflect.Field field = String.class.getDeclaredField("value");
    field.setAccessible(true);  // refused by Java 9 and later unless it is opened
    String text = new String(Files.readAllBytes(Paths.get(args[0])), "UTF-8");
    if (!text.contains("\\"test\\": \\"a big dog\\"") || !args[1].equals("-out")) System.exit(9);
    if (!args[3].equals("-subset") || !args[4].equals("-silent")) System.exit(8);
    String none = "{\\"pr\\": null, \\"re\\": 0.0, \\"f\\": null}";
    String result = "[{\\"image_id\\": 1, \\"scores\\": {\\"All\\": {\\"f\\": 0.25, \\"tp\\": 2},"
        + "\\"Object\\": " + none + "}}, {\\"image_id\\": 0, \\"scores\\": {\\"All\\":"
        + "{\\"f\\": 0.5, \\"tp\\": 1}, \\"Object\\": " + none + "}}]";
    Files.write(Paths.get(args[2]), result.getBytes("UTF-8"));
  }
}
"""


@pytest.fixture
def jars(tmp_path):
    folder = tmp_path / "jars"
    folder.mkdir()
    for name in SPICE_JARS:
        with zipfile.ZipFile(folder / name, "w") as file:
            file.writestr("empty", "")
    return folder


@needs_java
@needs_javac
def test_spice_of_a_stand_in(jars, tmp_path):
    """The real one needs downloads; a class of its name stands in, and checks its arguments."""
    source = tmp_path / "SpiceScorer.java"
    source.write_text(JAVA)
    subprocess.run(["javac", "-d", tmp_path, source], check=True)
    with zipfile.ZipFile(jars / SPICE_JARS[0], "w") as file:
        name = "edu/anu/spice/SpiceScorer.class"
        file.write(tmp_path / name, name)
    scores = score_captions(
        {"x": "A big dog.", "y": "cats"},
        {"x": ["a dog"], "y": ["a cat", "cats"]},
        ["Bleu_1"],
        per_image=True,
        spice_jars=jars,
    )
    assert list(scores) == ["Bleu_1", "SPICE", "per_image"]
    assert scores["SPICE"] == 0.375
    assert [row["SPICE"] for row in scores["per_image"].values()] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no memory >&2; exit 1", "SPICE failed: no memory"),
        ("exit 1", "SPICE failed: it says nothing"),
        ("exec sleep 60", "SPICE failed: no end within 1 s"),
        ("exit 0", "no such file or folder; expected SPICE's scores"),
        ('echo \'[{"image_id": 0}]\' > "$7"', "SPICE failed: unknown form"),
        ("echo '\"scriptEngine\" is null' >&2; exit 1", "JavaScript of Java 8 to 14, or nashorn"),
    ],
)
def test_a_spice_that_fails(script, message, program, jars, monkeypatch):
    program(script)
    monkeypatch.setattr(java_scores, "_SPICE_PATIENCE", (0.5, 0.5))
    with pytest.raises(SparsecapError, match=message):
        spice(["a dog"], [["a cat"]], jars)


def test_jars_that_are_missing(jars, monkeypatch, tmp_path):
    (jars / SPICE_JARS[1]).unlink()
    with pytest.raises(DataError, match=r"jars: stanford-.*-models.jar is missing; .*zip"):
        score_captions({1: "a"}, {1: ["a"]}, ["CIDEr"], spice_jars=jars)
    (jars / SPICE_JARS[1]).touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no java program on the path; expected one for SPICE"):
        score_captions({1: "a"}, {1: ["a"]}, ["CIDEr"], spice_jars=jars)

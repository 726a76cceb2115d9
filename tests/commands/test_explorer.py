import base64
import json
import pathlib
import re
import struct
import zlib

import numpy as np
import pytest
from explorer_files import BOXES, TEST, VAL, make_results, make_runs

from sparsecap_jax.commands._explorer_sources import _names, find_all_results
from sparsecap_jax.commands.explorer import write_explorer
from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.pages import assemble, text_block
from sparsecap_jax.evaluation.pages.explorer import marked_words, pack_regions
from sparsecap_jax.evaluation.result_files import (
    load_attention,
    load_corpus_scores,
    load_image_scores,
)
from sparsecap_jax.files import read_json, write_json


def content(page):
    """The data of a page, as its script reads it, and its other blocks."""
    blocks = dict(re.findall(r'<script type="text/plain" id="([\w-]+)">(.*?)</script>', page, re.S))
    return json.loads(zlib.decompress(base64.b64decode(blocks.pop("data")))), blocks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    ("caption", "known", "text", "unknown"),
    [
        ("A  red\tball, here!", {"a", "ball"}, "A red ball, here!", [1, 3]),
        ("a man's t-shirt", {"a", "mans", "t"}, "a man's t-shirt", [2]),
        ("... a", {"a"}, "... a", []),
        ("", {"a"}, "", []),
        ("<b>a</b>", {"a"}, "<b>a</b>", [0]),
        ("红色的球。 ball", {"红", "的", "ball"}, "红\u200b色\u200b的\u200b球。 ball", [1, 3]),
        ("ball\u200bs", {"balls"}, "balls", []),
    ],
)
def test_words_that_no_reference_has(caption, known, text, unknown):
    assert marked_words(caption, known) == (text, unknown)


def test_regions_are_packed_as_documented():
    boxes = np.array([[0, 0.25, 0.5, 1.004]], np.float32)
    packed = pack_regions(boxes, [[[0.25], [1.0]], None])
    assert packed[:3] == struct.pack("<HB", 1, True)
    assert struct.unpack("<4H", packed[3:11]) == (0, 16384, 32768, 65535)
    assert struct.unpack("<HH", packed[11:15]) == (2, 1)
    assert [*packed[15:17]] == [128, 255]  # 255 * sqrt(0.25) = 127.5
    assert packed[17:] == struct.pack("<HH", 0, 0)
    assert pack_regions(None, [[]]) == struct.pack("<HBHH", 0, 0, 0, 0)


def test_the_page_holds_what_was_evaluated(runs, tmp_path):
    lines = []
    write_explorer(runs, tmp_path / "report.html", report=lines.append)
    page = (tmp_path / "report.html").read_text()
    data, blocks = content(page)
    assert data["ids"] == [*map(str, (*VAL, *TEST))]  # the order of the dataset's splits
    assert data["splits"] == ["val"] * 2 + ["test"] * 11
    first, second = data["models"]
    assert (first["name"], second["name"]) == ("first", "second")
    assert first["captions"][2] == "a red ball 1" and second["captions"][:2] == [None, None]
    assert first["unknown"] == [[]] * 13 and second["unknown"] == [[], []] + [[1]] * 11
    assert first["scores"]["CIDEr"][:3] == [1.2, 1.3, 0.1]
    assert second["scores"]["CIDEr"][:3] == [None, None, 0.95]
    assert [row["split"] for row in first["corpus"]] == ["test", "val"]
    assert first["corpus"][0]["CIDEr_95%"] == [0.1, 0.9]
    assert {*blocks} == {"regions-0", "pictures-0"}
    regions = zlib.decompress(base64.b64decode(blocks["regions-0"]))
    one = pack_regions(BOXES, [[[0.9, 0.1], [0.4, 0.6], [0.25, 0.75], [1.0, 0.0]], None])
    assert regions.startswith(one)
    pictures = [base64.b64decode(line) for line in blocks["pictures-0"].split("\n")]
    assert len(pictures) == 13 and {picture[8:12] for picture in pictures} == {b"WEBP"}
    assert lines[-1].startswith(f"wrote {tmp_path}/report.html: 13 images, 2 models, ")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_results_of_several_searches_are_models_of_their_own(runs):
    folder = make_results(runs[0], "first", "test", "greedy")
    found = find_all_results(runs)
    names = [(one.model, one.split, one.captions.parent.name) for one in found]
    assert names == [
        ("first beam_2", "test", "test_beam_2"),
        ("first greedy", "test", "test_greedy"),
        ("first beam_1", "val", "val_beam_1"),
        ("second", "test", "test_beam_2"),
    ]
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folders = [run / "test_beam_2" for run in runs]
    assert [(o.model, o.split, o.run) for o in find_all_results(folders)] == [
        ("first", "test", runs[0]),
        ("second", "test", runs[1]),
    ]
    with pytest.raises(DataError, match="each once"):
        find_all_results([runs[0], runs[0]])
    with pytest.raises(DataError, match="nothing: no such file or folder; expected a file of capt"):
        find_all_results([runs[0] / "nothing"])
    with pytest.raises(DataError, match=r"no captions; expected a file of captions, or results of"):
        find_all_results([runs[0].parent / "data"])


def test_results_of_model_files_and_names_lie_next_to_them(tmp_path):
    (tmp_path / "m.scap").write_bytes(b"a model")
    for folder in ("m.scap_test_beam_1", "mini_val_beam_2", "mini_test_beam_2"):
        write_json(tmp_path / folder / "captions.json", [{"image_id": 1, "caption": "a"}])
    found = find_all_results([tmp_path / "m.scap", tmp_path / "mini"])
    assert [(one.model, one.split, one.captions.parent.name) for one in found] == [
        ("m.scap", "test", "m.scap_test_beam_1"),
        ("mini", "test", "mini_test_beam_2"),
        ("mini", "val", "mini_val_beam_2"),
    ]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/a/test_2", "/r/b/test_2"], ["a", "b"]),
        (["/r/x/a/t", "/r/y/b/t"], ["x/a", "y/b"]),
        (["/r/a", "/r/a/b"], ["a", "a/b"]),
        (["/r/a.json", "/r/a.jsonl"], ["a.json", "a.jsonl"]),
        (["/r/a.v1.json"], ["a.v1"]),
        (["/a/a", "/a/a/a"], ["a", "a/a"]),
    ],
)
def test_models_are_named_by_what_differs(paths, names):
    assert _names([*map(pathlib.Path, paths)]) == names


def test_captions_without_scores_are_scored(runs, tmp_path):
    entries = [{"image_id": 1, "caption": "a cat"}, {"image_id": 2, "caption": "a dog"}]
    write_json(tmp_path / "mine.json", entries)
    write_json(tmp_path / "references.json", {"1": ["a cat"], "2": ["one dog"]})
    sources, html = [tmp_path / "mine.json"], tmp_path / "page.html"
    write_explorer(sources, html, references=tmp_path / "references.json")
    data, _ = content(html.read_text())
    (model,) = data["models"]
    assert model["name"] == "mine"
    assert model["scores"]["Bleu_1"] == [1, 0.5]
    assert model["unknown"] == [[], [0]]
    lines = []
    write_explorer(sources, html, report=lines.append)
    data, _ = content(html.read_text())
    assert data["references"] == [[], []] and data["models"][0]["scores"] == {}
    assert data["models"][0]["unknown"] == [[], []]  # without references no word is wrong
    expected = "images without references; no scores (--references=FILE names some)"
    assert lines[0] == f"{tmp_path}/mine.json: {expected}"
    advice = "no picture, and an empty frame; --images=FOLDER names the folder of pictures"
    assert lines[1] == f"2 of 2 images: {advice}"
    assert lines[2].startswith(f"wrote {html}: 2 images, 1 model, ")


def test_scores_of_other_captions_are_not_shown(tmp_path):
    runs = make_runs(tmp_path)
    file = runs[1] / "test_beam_2/captions.json"
    entries = read_json(file)
    entries[0] = {"image_id": 1, "caption": "a red ball on grass"}
    write_json(file, entries)
    lines = []
    write_explorer(runs, tmp_path / "page.html", report=lines.append)
    data, _ = content((tmp_path / "page.html").read_text())
    assert lines[0].endswith("of other captions than captions.json; scored anew")
    assert data["models"][1]["scores"]["Bleu_4"][2] == 1


def test_pictures_that_cannot_be_read_are_left_out(tmp_path):
    runs = make_runs(tmp_path)
    (tmp_path / "data/images/3.png").write_bytes(b"none")
    lines = []
    write_explorer(runs, tmp_path / "page.html", report=lines.append)
    assert lines[0].startswith("left out: ") and "3.png: not an image" in lines[0]
    assert lines[1].startswith("1 of 13 images: no picture, and an empty frame; --images=FOLDER ")
    _, blocks = content((tmp_path / "page.html").read_text())
    sizes = [len(line) for line in blocks["pictures-0"].split("\n")]
    assert [number for number, size in enumerate(sizes) if not size] == [4]


def test_linked_pictures_are_named_from_the_page(runs, tmp_path):
    html = runs[0].parent / "pages & more/report.html"
    write_explorer(runs, html, link_images=True)
    data, blocks = content(html.read_text())
    assert data["links"][:2] == ["../data/images/12.png", "../data/images/13.png"]
    assert {*blocks} == {"regions-0"}


def test_groups(runs, tmp_path):
    write_json(tmp_path / "groups.json", {"1": "night", "12": "day"})
    write_explorer(runs, tmp_path / "page.html", groups=tmp_path / "groups.json")
    data, _ = content((tmp_path / "page.html").read_text())
    assert data["groups"][:4] == ["day", "", "night", ""]


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("caption,CIDEr\na,1\n", "expected image_id, caption and scores"),
        ("image_id,caption,CIDEr\n1,a,x\n", r"row 2: CIDEr: found 'x', expected a number"),
        ("image_id,caption,CIDEr\n1,a,nan\n", "found 'nan', expected a number"),
        ("image_id,caption\n1,a\n01,a\n", "row 3: image 1 is there twice"),
        ("image_id,caption\n1,a,3\n", "row 2: expected image_id"),
    ],
)
def test_damaged_scores_of_images(tmp_path, table, fault):
    (tmp_path / "scores_per_image.csv").write_text(table)
    with pytest.raises(DataError, match=fault):
        load_image_scores(tmp_path / "scores_per_image.csv")


def test_empty_scores_of_images(tmp_path):
    (tmp_path / "a.csv").write_text("image_id,caption,METEOR,other\nx,,,7\n")
    assert load_image_scores(tmp_path / "a.csv") == ({"x": ""}, {"x": {"METEOR": None}})


@pytest.mark.parametrize(
    ("attention", "fault"),
    [
        ([[0.5, 0.5]], "expected 2 rows"),
        ("no", "expected 2 rows"),
        ([[0.5], [0.5, 0.5]], "expected weights from 0 to 1"),
        ([[0.5], [-1]], "expected weights from 0 to 1"),
        ([[0.5], [float("nan")]], "expected weights from 0 to 1"),
        ([[0.5], [True]], "expected weights from 0 to 1"),
        ([0.5, 0.5], "expected weights from 0 to 1"),
    ],
)
def test_attention_must_fit_the_caption(tmp_path, attention, fault):
    file = tmp_path / "captions.json"
    write_json(file, [{"image_id": 7, "caption": "a cat", "attention": attention}])
    with pytest.raises(DataError, match=rf"entry 0\.attention: .*{fault}"):
        load_attention(file)


def test_figures_of_another_type_are_left_out(tmp_path):
    figures = {"CIDEr": 1.5, "METEOR": None, "bytes": True, "CIDEr_95%": [1, 2], "Bleu_1_95%": [1]}
    write_json(tmp_path / "scores.json", {**figures, "text": {}})
    assert load_corpus_scores(tmp_path / "scores.json") == {"CIDEr": 1.5, "CIDEr_95%": [1, 2]}


def test_texts_of_a_page_are_no_markup():
    texts = {"title": "</title><b> {{styles}}"}
    parts = assemble("explorer.html", styles=["page.css"], texts=texts)
    assert len(parts) == 3
    assert "<title>&lt;/title&gt;&lt;b&gt; {{styles}}</title>" in parts[0]
    assert "script-src 'none'" in parts[0] and "default-src 'none'" in parts[0]
    with pytest.raises(ValueError, match="without < and &"):
        text_block("data", "</script>")

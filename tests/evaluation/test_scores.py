"""Scoring files of captions: the published figures, the formats, and broken files."""

import json

import numpy as np
import pytest

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation import ptb_java
from sparsecap_jax.evaluation.caption_files import (
    load_caption_sets,
    load_captions,
    load_references,
)
from sparsecap_jax.evaluation.metrics import (
    FAST_METRICS,
    evaluate_caption_files,
    evaluate_caption_sets,
    more_lines,
    score_captions,
)
from sparsecap_jax.files import read_csv
from sparsecap_jax.scst.document_frequency import count_documents


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def published(shared):
    """Captions and references of the 5,000 Karpathy test images."""

    def paths(name):
        captions = shared / f"data/published_test_captions/{name}_captions.json"
        return captions, shared / "data/coco_karpathy_test/references.json"

    return paths


@pytest.mark.skipif(not ptb_java.java_available(), reason="no java on the path")
def test_published_scores_to_the_last_digit(shared, published, tmp_path):
    folder = shared / "data/published_test_captions"
    expected = json.loads((folder / "up_down_tiny_97.5_scores.json").read_text("utf-8"))
    del expected["SPICE"]
    output = tmp_path / "new/scores.json"
    scores = evaluate_caption_files(*published("up_down_tiny_97.5"), output)
    assert json.loads(output.read_text("utf-8")) == scores
    assert scores.pop("images") == 5000
    text = scores.pop("text")
    assert scores == pytest.approx(expected, rel=1e-14)  # NumPy sums as the processor does
    assert (text["vocabulary"], text["words"]) == (379, 8.9766)
    entries = json.loads(output.with_name("scores_detailed.json").read_text("utf-8"))
    rows = read_csv(output.with_name("scores_per_image.csv"))
    assert len(entries) == len(rows) == 5000
    for metric in ("ROUGE_L", "CIDEr"):
        each = [entry[metric] for entry in entries]
        assert np.mean(each) == pytest.approx(expected[metric], rel=1e-14)
        assert [float(row[metric]) for row in rows] == each


@pytest.mark.parametrize("name", ["gru_80", "lstm_97.5"])
def test_published_scores_of_soft_attention(name, shared, published):
    scores = evaluate_caption_files(*published(name), metrics=FAST_METRICS, tokenizer="python")
    text = (shared / f"data/published_test_captions/{name}_scores.txt").read_text("utf-8")
    expected = dict(line.split(": ") for line in text.splitlines() if ": 0." in line)
    assert len(expected) == 8
    for metric in FAST_METRICS:
        assert f"{scores[metric]:.3f}" == expected[metric]


REFERENCES = {
    "plain": {"1": ["a cat", "one cat"], "002": ["two dogs"], "p_3": ["a pig"]},
    "coco": {
        "images": [{"id": 1}, {"id": 2}, {"id": "p_3"}],
        "annotations": [
            {"image_id": 1, "caption": "a cat"},
            {"image_id": 2, "caption": "two dogs"},
            {"image_id": "p_3", "caption": "a pig"},
            {"image_id": 1, "caption": "one cat"},
        ],
    },
    "karpathy": {
        "images": [
            {
                "cocoid": 1,
                "filename": "COCO_val2014_000000000001.jpg",
                "split": "test",
                "sentences": [
                    {"tokens": ["x"], "raw": "a cat"},
                    {"tokens": ["x"], "raw": "one cat"},
                ],
            },
            {
                "filename": "COCO_val2014_000000000002.jpg",
                "split": "restval",
                "sentences": [{"tokens": ["x"], "raw": "two dogs"}],
            },
            {
                "filename": "p_3.jpg",
                "split": "val",
                "sentences": [{"tokens": ["x"], "raw": "a pig"}],
            },
        ]
    },
    "folder": {
        "dataset": "d",
        "images": [
            {"filename": "1.jpg", "split": "train", "captions": ["a cat", "one cat"]},
            {"filename": "COCO_val2014_000000000002.jpg", "captions": ["two dogs"]},
            {"filename": "p_3.png", "captions": ["a pig"]},
        ],
    },
}
REFERENCES["annotations"] = REFERENCES["coco"]["annotations"]
REFERENCES["karpathy, tokens alone"] = {
    "images": [
        {**image, "sentences": [{"tokens": s["raw"].split()} for s in image["sentences"]]}
        for image in REFERENCES["karpathy"]["images"]
    ]
}


@pytest.mark.parametrize("form", REFERENCES)
def test_forms_of_references(form, tmp_path, caplog):
    path = write(tmp_path / "references.json", REFERENCES[form])
    assert load_references(path) == {1: ["a cat", "one cat"], 2: ["two dogs"], "p_3": ["a pig"]}
    captions = [
        {"image_id": "2", "caption": "two dogs", "log_prob": -1.5},
        {"image_id": 1, "caption": "one cat"},
    ]
    captions = write(tmp_path / "captions.json", captions)
    scores = evaluate_caption_files(captions, path, metrics=["ROUGE_L"], tokenizer="python")
    assert scores.pop("text")["words"] == 2
    assert scores == {"ROUGE_L": 1.0, "images": 2}
    assert "no caption for 1 images of the references" in caplog.text


LINES = b'\xef\xbb\xbf{"image_id": "1", "caption": "a cat"}\r\n\n{"image_id": 2, "caption": "dogs"}'


def test_other_forms_of_captions(tmp_path):
    """As in cases/jsonl; and the form of pycocoevalcap."""
    expected = {1: "a cat", 2: "dogs"}
    lines = tmp_path / "captions.jsonl"
    lines.write_bytes(LINES)
    assert load_captions(lines) == expected
    assert load_references(lines) == {1: ["a cat"], 2: ["dogs"]}
    pairs = write(tmp_path / "captions.json", {"1": ["a cat"], "2": ["dogs"]})
    assert load_captions(pairs) == expected
    for line, message in (
        (b"{", "line 4: broken JSON"),
        (b'{"image_id": 1, "image_id": 2}', "line 4: broken JSON: key 'image_id' occurs 2 times"),
        (b'{"image_id": 2, "caption": "x"}', "line 4.image_id: image 2 has a caption already"),
        (b"\xff", "line 4 is not UTF-8"),
    ):
        lines.write_bytes(LINES + b"\n" + line)
        with pytest.raises(DataError, match=message):
            load_captions(lines)


@pytest.mark.parametrize("number", [1234567890123456789, 12345678901234567890, -1])
def test_long_ids_match(tmp_path, number):
    """As in cases/ids_19_digits."""
    captions = write(tmp_path / "c.json", [{"image_id": number, "caption": "a dog runs"}])
    references = write(tmp_path / "r.json", {str(number): ["a dog runs"]})
    assert evaluate_caption_files(captions, references, metrics=["ROUGE_L"])["ROUGE_L"] == 1.0


def test_real_files(shared):
    coco = load_references(shared / "data/coco_val2017/captions_val2017.json")
    assert (len(coco), sum(map(len, coco.values()))) == (5000, 25014)
    photos = load_references(shared / "data/flickr8k_1k/captions.json")
    assert len(photos) == 1000 and {len(texts) for texts in photos.values()} == {5}
    assert photos["1000268201_693b08cb0e"][1] == "A girl going into a wooden building ."
    five = load_references(shared / "data/coco_five/dataset_coco_testing.json")
    assert set(five) == {391895, 522418, 184613, 57870, 384029}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", r"c\.json: broken JSON at line 1"),
        ([], r"c\.json: found \[\], expected a list of"),
        ({"1": 5}, r"'1': found 5, expected a list of one caption"),
        ({"a.jpg": "a", "b.jpg": 5}, r"'a\.jpg': found 'a', expected a list of one caption"),
        ({"x/1.jpg": "a", "1.png": "b"}, r"'x/1\.jpg' and '1\.png' are one image id; expected ph"),
        ({"x/1.jpg": {"photo": "x/1.jpg"}}, r"'x/1\.jpg': 'caption' is missing"),
        ({".": "a"}, r"c\.json: '\.': found '', expected an integer or a name"),
        ({"1": ["a", "b"]}, r"'1': found \['a', 'b'\], expected a list of one caption"),
        ({"1": ["a"], "01": ["b"]}, "'01': image 1 is there twice"),
        ('{"1": ["a"], "1": ["b"]}', "key '1' occurs 2 times in one object, expected once"),
        ([5], "entry 0: found 5, expected an object"),
        ([{"image_id": 1}], r"entry 0: 'caption' is missing, found \['image_id'\]"),
        ([{"caption": "a"}], r"entry 0: 'image_id' is missing"),
        ([{"image_id": 1.5, "caption": "a"}], r"entry 0\.image_id: found 1\.5, expected an integ"),
        ([{"image_id": True, "caption": "a"}], r"entry 0\.image_id: found True"),
        ([{"image_id": 1, "caption": None}], r"entry 0\.caption: found None, expected text"),
        ([{"image_id": 1, "caption": "\ud800"}], r"entry 0\.caption: not valid Unicode text"),
        (
            [{"image_id": 1, "caption": "a"}, {"image_id": "01", "caption": "b"}],
            r"entry 1\.image_id: image 1 has a caption already",
        ),
    ],
)
def test_broken_captions(content, message, tmp_path):
    path = write(tmp_path / "c.json", content)
    with pytest.raises(DataError, match=message):
        load_captions(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"r\.json: broken JSON"),
        ("7", r"r\.json: found 7, expected COCO annotations"),
        ({}, r"r\.json: no captions"),
        ({"annotations": []}, r"r\.json: no captions"),
        ({"images": [{"filename": "a.jpg"}]}, r"images\[0\]: 'captions' is missing"),
        ({"images": [{"captions": ["a"]}]}, r"images\[0\]: 'filename' is missing"),
        ({"images": [{"filename": 3, "captions": ["a"]}]}, r"images\[0\]\.filename: found 3"),
        ({"images": [{"sentences": [1]}]}, r"images\[0\]: key 'split' is missing"),
        ({"images": [{"sentences": 1}]}, r"images\[0\]: key 'split' is missing"),
        ({"images": [{"sentences": []}]}, r"images\[0\]: key 'split' is missing"),
        (
            {"images": [{"sentences": 5, "filename": "1.jpg", "split": "val"}]},
            r"images\[0\]\.sentences: expected a list, found 5",
        ),
        (
            {"images": [{"sentences": [5], "filename": "1.jpg", "split": "val"}]},
            r"sentences\[0\]: expected an object, found 5",
        ),
        ('{"1": ["a"], "1": ["b"]}', "key '1' occurs 2 times in one object, expected once"),
        ({"1": "a"}, r"'1': found 'a', expected a list of captions"),
        ({"1": []}, r"'1': found \[\], expected a list of captions"),
        ({"1": ["a", 5]}, r"'1'\[1\]: found 5, expected text"),
        ({"1": ["a"], "01": ["b"]}, r"'01': image 1 is there twice"),
        ({"annotations": [{"image_id": [], "caption": "a"}]}, r"entry 0\.image_id: found \[\]"),
    ],
)
def test_broken_references(content, message, tmp_path):
    path = write(tmp_path / "r.json", content)
    with pytest.raises(DataError, match=message):
        load_references(path)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(DataError, match=r"c\.json: no such file"):
        load_captions(tmp_path / "c.json")
    (tmp_path / "c.json").write_bytes('[{"image_id": 1, "caption": "caf\xe9"}]'.encode("latin-1"))
    with pytest.raises(DataError, match=r"c\.json: byte 32 is not UTF-8"):
        load_captions(tmp_path / "c.json")


def test_captions_without_references(tmp_path):
    rows = [{"image_id": i, "caption": "a"} for i in range(8)]
    captions = write(tmp_path / "c.json", rows)
    references = write(tmp_path / "r.json", {"0": ["a"]})
    output = tmp_path / "scores.json"
    with pytest.raises(DataError, match=r"c\.json: 7 of 8 images have no references in .*r\.json"):
        evaluate_caption_files(captions, references, output)
    assert not output.exists()


CAPTIONS = {"1": ["a cat"], "2": ["dogs run home"], "p_3": ["a cat"]}
JUDGES = {"1": ["a cat", "one cat"], "2": ["two dogs"], "p_3": ["a cat."], "4": ["a red pig"]}


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "c.json", CAPTIONS), write(tmp_path / "r.json", JUDGES)


def test_scores_of_each_image_are_written(files, tmp_path):
    fast = {"metrics": FAST_METRICS, "tokenizer": "python"}
    result = evaluate_caption_files(*files, tmp_path / "out/s.json", **fast)
    captions = {key: text for key, (text,) in load_references(files[0]).items()}
    references = {key: load_references(files[1])[key] for key in captions}
    expected = score_captions(captions, references, FAST_METRICS, "python", per_image=True)
    rows = read_csv(tmp_path / "out/s_per_image.csv")
    assert list(rows[0]) == ["image_id", "caption", *FAST_METRICS]
    assert [(row["image_id"], row["caption"]) for row in rows][1] == ("2", "dogs run home")
    entries = json.loads((tmp_path / "out/s_detailed.json").read_text("utf-8"))
    for row, entry, (key, scores) in zip(rows, entries, expected["per_image"].items(), strict=True):
        # The reference's entries have their keys in order, and ids as the annotations have them.
        assert list(entry) == sorted(["image_id", *FAST_METRICS])
        assert entry == {"image_id": key, **scores}
        assert {name: float(row[name]) for name in FAST_METRICS} == scores
    assert {*result} == {*FAST_METRICS, "images", "text"}


def test_scores_of_groups(files, tmp_path):
    """BLEU of a group is that of its counts; CIDEr keeps all images' document frequencies."""
    groups = write(tmp_path / "g.json", {"0001": "pets", "p_3": "pets", "2": 7, "9": "others"})
    fast = {"metrics": FAST_METRICS, "tokenizer": "python"}
    result = evaluate_caption_files(*files, **fast, groups=groups)
    assert {name: row["images"] for name, row in result["groups"].items()} == {"7": 1, "pets": 2}
    pets = {key: load_references(files[1])[key] for key in (1, "p_3")}
    alone = score_captions({1: "a cat", "p_3": "a cat"}, pets, FAST_METRICS, "python")
    found = result["groups"]["pets"]
    for metric in ("Bleu_1", "Bleu_4", "ROUGE_L"):
        assert found[metric] == pytest.approx(alone[metric], rel=1e-12)
    each = (result["groups"]["7"]["CIDEr"] + 2 * found["CIDEr"]) / 3
    assert each == pytest.approx(result["CIDEr"], rel=1e-12) and found["CIDEr"] > 0
    assert more_lines(result)[1].startswith("group pets: 2 images | Bleu_1 1.0000")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "g.json: broken JSON"),
        ([], r"g.json: found \[\], expected \{image id: group\}"),
        ({"1": None}, "'1': found None, expected the name of a group"),
        ({"1": True}, "'1': found True, expected the name of a group"),
        ({"5": "a"}, "has none of the captions' images"),
        ({"1": "a", "01": "b"}, "'01': image 1 is there twice, expected once"),
    ],
)
def test_broken_groups(content, message, files, tmp_path):
    groups = write(tmp_path / "g.json", content)
    with pytest.raises(DataError, match=message):
        evaluate_caption_files(*files, metrics=["CIDEr"], groups=groups)


def test_images_without_a_group_are_in_none(files, tmp_path, caplog):
    """A group may have any name, the empty one too."""
    groups = write(tmp_path / "g.json", {"1": "", "p_3": "x"})
    result = evaluate_caption_files(*files, metrics=["ROUGE_L"], groups=groups)
    assert {name: row["images"] for name, row in result["groups"].items()} == {"": 1, "x": 1}
    assert "g.json: no group for 1 images" in caplog.text


def test_document_frequencies_of_a_corpus_are_named(tmp_path):
    """One image no longer scores 0."""
    captions = write(tmp_path / "c.json", {"1": ["a cat"]})
    references = write(tmp_path / "r.json", {"1": ["a cat"]})
    count_documents([["a dog"], ["a cat"], ["x"]], dataset="pets").save(tmp_path / "df.npz")
    options = {"metrics": ["CIDEr"], "tokenizer": "python"}
    assert evaluate_caption_files(captions, references, **options)["CIDEr"] == 0
    df = tmp_path / "df.npz"
    scores = evaluate_caption_files(captions, references, document_frequency=df, **options)
    assert scores["CIDEr"] == pytest.approx(5.0)  # two orders of four
    assert scores["CIDEr_df"] == "pets, 3 images"
    expected = "CIDEr: document frequencies of pets, 3 images, not of the references"
    assert more_lines(scores)[0] == expected
    count_documents([["1 2"]], dataset="").save(df)
    with pytest.raises(DataError, match="not document frequencies"):
        evaluate_caption_files(captions, references, document_frequency=captions, **options)


def test_copies_of_training_captions(files, tmp_path):
    training = write(tmp_path / "t.json", {"7": ["A cat.", "x"]})
    scores = evaluate_caption_files(*files, metrics=["Bleu_1"], training=training)
    assert scores["text"]["copied"] == pytest.approx(2 / 3)
    assert "copied 0.6667" in more_lines(scores)[-1]


def test_several_captions_of_an_image(tmp_path):
    """As `sparsecap caption` writes candidates, and in the forms of references."""
    sets = {1: ["a cat", "one cat"], 2: ["two dogs", "two dogs"]}
    entries = [
        {"image_id": key, "caption": "x", "candidates": [{"caption": text} for text in texts]}
        for key, texts in sets.items()
    ]
    path = write(tmp_path / "c.json", entries)
    assert load_caption_sets(path) == sets
    rows = [{"image_id": key, "caption": text} for key in sets for text in sets[key]]
    assert load_caption_sets(write(tmp_path / "rows.json", rows)) == sets
    references = write(tmp_path / "r.json", {"1": ["a cat."], "2": ["dogs"]})
    figures = evaluate_caption_sets(path, references, tmp_path / "out.json")
    assert figures["distinct_1"] == (3 / 4 + 2 / 4) / 2
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == figures
    for change, message in (
        ({"candidates": 3}, r"entry 1.candidates: found 3, expected a list"),
        ({"candidates": []}, r"entry 1: found \[\], expected a list of captions"),
        ({"candidates": [{}]}, r"entry 1.candidates\[0\]: 'caption' is missing"),
        ({"candidates": [{"caption": "a"}]}, r"captions per image: found \[1, 2\]"),
        ({"image_id": 9}, r"1 of 2 images have no references in .*r.json: 9"),
    ):
        write(path, [entries[0], {**entries[1], **change}])
        with pytest.raises(DataError, match=message):
            evaluate_caption_sets(path, references)

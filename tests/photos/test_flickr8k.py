"""The captioner that comes with the package by the name of `flickr8k`."""

import pathlib
import re

import pytest

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.data.datasets import load_splits
from sparsecap_jax.evaluation.metrics import score_captions
from sparsecap_jax.pruning.summary import weight_counts
from sparsecap_jax.runs import published
from sparsecap_jax.runs.directory import load_run

NAME, PHOTOS = "flickr8k", 200
CARD = pathlib.Path(__file__).parents[2] / "docs" / "flickr8k.md"


def test_it_is_small_sparse_and_whole():
    folder = published.find(NAME)
    size = (folder / "model.scap").stat().st_size
    assert size < 600_000 and f"`model.scap`, {size:,} bytes" in CARD.read_text()
    run = load_run(folder)
    counts = weight_counts(run.params, run.masks)
    assert (counts["kept"], counts["prunable"]) == (204_602, 4_092_032)  # 95.00%
    assert f"{counts['kept']:,} of {counts['prunable']:,} prunable ones kept" in CARD.read_text()
    for path in folder.glob("*.json"):
        assert not re.search(r"/(work|home|tmp|root)/", path.read_text()), path


@pytest.mark.shared
@pytest.mark.usefixtures("optimized")
def test_dev_scores_are_those_of_its_card(shared):
    """The first 200 dev photos of Flickr8k, from the files to CIDEr."""
    data = shared / "data" / "flickr8k"
    records = load_splits("photos", data, text="raw")["val"][:PHOTOS]
    paths = [data / "images" / record.filename for record in records]
    captions = Captioner.load(NAME).caption_photos(paths, batch_size=50)
    found = {r.image_id: c.text for r, c in zip(records, captions, strict=True)}
    references = {r.image_id: [*r.captions] for r in records}
    scores = score_captions(found, references, metrics=("CIDEr", "Bleu_4"), tokenizer="python")
    (row,) = re.findall(r"^\| first 200 of dev \|.*", CARD.read_text(), re.MULTILINE)
    bleu_4, cider = (float(cell) for cell in row.split("|")[2:4])
    # Another processor may round a feature otherwise, and change a caption of a hundred.
    assert 100 * scores["Bleu_4"] == pytest.approx(bleu_4, abs=0.3)
    assert 100 * scores["CIDEr"] == pytest.approx(cider, abs=0.6)

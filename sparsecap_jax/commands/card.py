"""Model card of a run, a Markdown page (`launch/card.py`)."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsecap_jax.commands import card_page
from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.data.datasets import load_dataset
from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.caption_files import load_captions
from sparsecap_jax.evaluation.failures import find_failures
from sparsecap_jax.evaluation.metrics import METRICS
from sparsecap_jax.evaluation.ptb_tokenizer import tokenize_captions
from sparsecap_jax.files import write_atomically
from sparsecap_jax.models import model_class
from sparsecap_jax.runs.directory import load_run
from sparsecap_jax.runs.finished import finished_weights
from sparsecap_jax.runs.overrides import change_data
from sparsecap_jax.runs.published import resolve_run, results_folder
from sparsecap_jax.text import normalize

SPLITS = {"dev": "val", "test": "test"}


def write_card(
    run: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    changes: Sequence[str] = (),
    samples: int = 24,
    metrics: Sequence[str] = METRICS,
    report: Callable[[str], None] = print,
    **search: Any,
) -> None:
    """Write the card of a run: what it is, scores, sparsity, failures, samples, licences.

    Captions of dev and test are made anew, in `RUN/card_dev` and `RUN/card_test`. The page has
    captions of the model, and none of the dataset's.

    Args:
        run: a run directory, a model file, or the name of a captioner of the package.
        output: the page.
        changes: `data.FIELD=VALUE`, where the dataset is another than the config says; another
            `name` or `mixture` leaves out how many images the run was trained on.
        samples: captions to show, those of the first test photos.
        metrics: see `score_captions`.
        report: takes one line of progress at a time.
        **search: see `SearchOptions`; by default the run's own search, else beams as its config
            says.

    Raises:
        SparsecapError: the run or its dataset is missing or broken, or photos lack references.
    """
    loaded = load_run(resolve_run(run))
    config = change_data(loaded.config, changes)
    boxes = getattr(model_class(config.model.name), "needs_boxes", False)
    dataset = load_dataset(config.data, need_boxes=boxes)
    options = {"changes": changes, "metrics": metrics, "report": report}
    options |= {**loaded.search, **search}
    results, of_model, of_people = {}, {}, {}
    for name, split in SPLITS.items():
        references = {record.image_id: record.raw for record in dataset.splits[split]}
        if not all(references.values()):
            raise DataError(f"{config.data.dir}: {split} photos without captions; expected some")
        folder = results_folder(run, f"card_{name}")
        results[name] = evaluate_run(run, split=split, output=folder, dataset=dataset, **options)
        captions = load_captions(folder / "captions.json")
        of_model[f"{name}, model"] = judge({i: captions[i] for i in references}, references)
        others = {image: texts[1:] for image, texts in references.items() if texts[1:]}
        of_people[f"{name}, people"] = judge({i: references[i][0] for i in others}, others)
    shown = dataset.splits["test"][:samples]
    photos = [str(record.filename or record.image_id) for record in shown]
    texts = [captions[record.image_id] for record in shown]
    own = all(config.data[field] == loaded.config.data[field] for field in ("name", "mixture"))
    train = dataset.splits["train"] if own else []
    page = [
        f"# {pathlib.Path(run).name}\n",
        card_page.facts(loaded, train, finished_weights(resolve_run(run))),
        card_page.scores(results, metrics),
        card_page.layers(loaded),
        card_page.failure_table({**of_model, **of_people}),
        card_page.samples(photos, texts, of_model["test, model"][: len(shown)]),
        card_page.licences(loaded),
    ]
    with write_atomically(output) as file:
        file.write("\n".join(page))
    report(f"wrote {output}")


def judge(captions: Mapping, references: Mapping) -> list[dict[str, list[str]]]:
    """Return the failures of captions by image id, in their order, see `find_failures`."""

    def tokens(texts: Sequence[str]) -> list[str]:
        return tokenize_captions([normalize(text) for text in texts])

    flat = iter(tokens([text for image in captions for text in references[image]]))
    judges = [[next(flat) for _ in references[image]] for image in captions]
    return find_failures(tokens([*captions.values()]), judges)

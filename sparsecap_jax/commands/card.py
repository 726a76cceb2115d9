"""Model card of a run, a Markdown page (`sparsecap card`)."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sparsecap_jax.commands import card_page
from sparsecap_jax.commands.evaluate import evaluate_run, whole_search
from sparsecap_jax.data.datasets import Dataset, load_dataset, stated_licence
from sparsecap_jax.data.records import Record
from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.caption_files import load_captions
from sparsecap_jax.evaluation.failures import find_failures
from sparsecap_jax.evaluation.metrics import METRICS
from sparsecap_jax.evaluation.ptb_tokenizer import tokenize_captions
from sparsecap_jax.files import write_atomically
from sparsecap_jax.models import model_class
from sparsecap_jax.runs.directory import load_run, steps_done
from sparsecap_jax.runs.finished import IMPORTED, finished_weights
from sparsecap_jax.runs.overrides import change_data
from sparsecap_jax.runs.published import resolve_run, results_folder
from sparsecap_jax.text import counted, normalize

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

    Captions of dev and test are made anew by one search, in `RUN/card/dev` and `RUN/card/test`,
    which reports leave out. The page has captions of the model, and none of the dataset's.

    Args:
        run: a run directory, a model file, or the name of a captioner of the package.
        output: the page.
        changes: `data.FIELD=VALUE`, where the dataset is another than the config says; another
            `name` or `mixture` leaves out how many images the run was trained on.
        samples: captions to show, those of the first test photos.
        metrics: see `score_captions`.
        report: takes one line of progress at a time.
        **search: see `SearchOptions`; by default the run's own, else its config's beams for test.

    Raises:
        SparsecapError: the run or its dataset is missing or broken, or photos lack references.
    """
    loaded = load_run(resolve_run(run))
    config = change_data(loaded.config, changes)
    boxes = getattr(model_class(config.model.name), "needs_boxes", False)
    dataset = load_dataset(config.data, need_boxes=boxes)
    search = whole_search(loaded, config, search)
    options = {"changes": changes, "metrics": metrics, "report": report, **search}
    made = {name: _caption_split(run, dataset, config.data.dir, name, options) for name in SPLITS}
    own = all(config.data[field] == loaded.config.data[field] for field in ("name", "mixture"))
    train = dataset.splits["train"] if own else []
    page = [
        f"# {pathlib.Path(run).name}\n",
        card_page.facts(loaded, search, train, _training(resolve_run(run), loaded.config)),
        card_page.scores({name: split.scores for name, split in made.items()}, metrics),
        card_page.layers(loaded),
        _failures(made),
        _samples(dataset.splits["test"][:samples], made["test"]),
        card_page.licences(loaded, _licence(config, own), resolve_run(run) != pathlib.Path(run)),
    ]
    with write_atomically(output) as file:
        file.write("\n".join(page))
    report(f"wrote {output}")


class _Split(NamedTuple):
    """Captions of a split by image id, their scores, and failures of the model and of people."""

    captions: dict[Any, str]
    scores: dict[str, Any]
    of_model: list[dict[str, list[str]]]
    of_people: list[dict[str, list[str]]]


def _caption_split(
    run: str | pathlib.Path, dataset: Dataset, directory: str, name: str, options: dict[str, Any]
) -> _Split:
    """Caption the dev or test split of `directory` anew, into a folder of the run, and judge it."""
    split = SPLITS[name]
    references = {record.image_id: record.raw for record in dataset.splits[split]}
    if not all(references.values()):
        raise DataError(f"{directory}: {split} photos without captions; expected some")
    folder = results_folder(run, "card") / name
    scores = evaluate_run(run, split=split, output=folder, dataset=dataset, **options)
    captions = load_captions(folder / "captions.json")
    of_model = judge({i: captions[i] for i in references}, references)
    others = {image: texts[1:] for image, texts in references.items() if texts[1:]}
    of_people = judge({i: references[i][0] for i in others}, others)
    return _Split(captions, scores, of_model, of_people)


def _failures(made: Mapping[str, _Split]) -> str:
    """Return the table of failures, those of the model before those of people."""
    failures = {f"{name}, model": split.of_model for name, split in made.items()}
    failures |= {f"{name}, people": split.of_people for name, split in made.items()}
    return card_page.failure_table(failures)


def _samples(records: Sequence[Record], split: _Split) -> str:
    """Return the captions of the first photos of a split."""
    photos = [str(record.filename or record.image_id) for record in records]
    texts = [split.captions[record.image_id] for record in records]
    return card_page.samples(photos, texts, split.of_model[: len(records)])


def _training(run: pathlib.Path, config: ConfigDict) -> tuple[pathlib.Path | None, str]:
    """Return the file of the weights, and how many steps were really taken."""
    train = config.train
    planned = counted(train.steps, "step") if train.steps else counted(train.epochs, "epoch")
    steps = None if run.is_file() else steps_done(run)
    if (run / IMPORTED).is_file():
        length = f"elsewhere, see {IMPORTED}"
    elif steps is None:
        length = f"{planned} planned, steps taken not stated"
    else:
        length = f"{counted(steps[0], 'step')} taken of {planned}, weights of step {steps[1]:,}"
    return finished_weights(run), length


def _licence(config: ConfigDict, own: bool) -> str:
    """Return the stated licence of the training data, of its description where it is at hand."""
    return stated_licence(config.data) if own else config.data.licence


def judge(captions: Mapping, references: Mapping) -> list[dict[str, list[str]]]:
    """Return the failures of captions by image id, in their order, see `find_failures`."""

    def tokens(texts: Sequence[str]) -> list[str]:
        return tokenize_captions([normalize(text) for text in texts])

    flat = iter(tokens([text for image in captions for text in references[image]]))
    judges = [[next(flat) for _ in references[image]] for image in captions]
    return find_failures(tokens([*captions.values()]), judges)

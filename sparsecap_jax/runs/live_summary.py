"""The page `summary.html` of a run: written at each validation, and as a picture at the end."""

import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

from sparsecap_jax.data.karpathy import ImageId
from sparsecap_jax.data.records import Record
from sparsecap_jax.errors import SparsecapError
from sparsecap_jax.evaluation.pages import data_url
from sparsecap_jax.evaluation.pages.charts import Curve, spread
from sparsecap_jax.evaluation.pages.explorer import thumbnail
from sparsecap_jax.evaluation.pages.summary import Progress, Sample, summary_page
from sparsecap_jax.files import named_errors, read_bytes, write_atomically
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.logs import TABLES, sound_rows
from sparsecap_jax.runs.run import Run

PAGE, PICTURE, SAMPLES = "summary.html", "summary.png", "samples.jsonl"
IMAGES = 4
"""Number of validation images whose captions are kept over time."""
_PIXELS = 320  # of the longer side of their pictures

logger = logging.getLogger(__name__)


def sample_records(records: Sequence[Record]) -> list[Record]:
    """Return the images that are followed: a few, evenly spread over the validation split."""
    return [records[place] for place in spread(len(records), IMAGES)]


class LiveSummary:
    """The summary of a run in training, and the file `samples.jsonl` of captions over time.

    All of it is derived from files of the run directory, so that a run that was killed continues
    its page. What cannot be written is a warning: training continues without it.

    Args:
        run: the run.
        first_step: step that training continues from; later lines of samples are dropped.
    """

    def __init__(self, run: Run, first_step: int):
        self._run = run
        self._samples: list[Sample] | None = None
        self._path = run.workdir / SAMPLES
        self._first = processes.is_first()
        if self._first and self._path.exists():
            with write_atomically(self._path) as file:
                file.writelines(_line(*one) for one in read_samples(self._path, first_step))

    def add(self, step: int, captions: Mapping[ImageId, str]) -> None:
        """Append the captions of some images at a validation."""
        if not self._first:
            return
        with named_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_line(step, {str(image): text for image, text in captions.items()}))

    def write(self, best_step: int | None = None, finished: bool = False) -> None:
        """Write the page anew, all or nothing; once finished, the picture too."""
        if not self._first:
            return
        try:
            progress = self._progress(best_step, finished)
            with write_atomically(self._run.workdir / PAGE) as file:
                file.write(summary_page(progress, self._followed()))
            if finished:
                from sparsecap_jax.evaluation.summary_picture import summary_picture

                summary_picture(self._run.workdir / PICTURE, progress, self._followed())
        except (SparsecapError, OSError) as error:
            logger.warning("no summary: %s", error)

    def _progress(self, best_step: int | None, finished: bool) -> Progress:
        config, workdir = self._run.config, self._run.workdir
        pruner = config.pruner.name
        title = config.model.name if pruner == "none" else f"{config.model.name}, {pruner}"
        tables = {table: _curves(workdir / f"{table}.csv") for table in TABLES}
        samples = read_samples(self._path) if self._path.exists() else []
        steps = self._run.total_steps
        return Progress(title, tables, samples, steps, finished, best_step)

    def _followed(self) -> list[Sample]:
        if self._samples is None:
            dataset = self._run.dataset
            records = dataset.splits["val"][: self._run.config.eval.images or None]
            self._samples = [_sample(one, dataset.images) for one in sample_records(records)]
        return self._samples


def read_samples(
    path: pathlib.Path, last_step: int | None = None
) -> list[tuple[int, dict[str, str]]]:
    """Read the lines `{"step": N, "captions": {id: text}}`; damaged ones are left out.

    A power cut leaves half a line, or NUL bytes.

    Args:
        path: the file.
        last_step: leave out later ones.

    Raises:
        DataError: it cannot be read.
    """
    found = []
    for line in read_bytes(path, "captions").decode("utf-8", "replace").splitlines():
        try:
            entry = json.loads(line)
            step, captions = entry["step"], entry["captions"]
            sound = type(step) is int and 0 <= step < 2**63 and isinstance(captions, dict)
            sound = sound and all(isinstance(text, str) for text in captions.values())
            line.encode()
        except (ValueError, LookupError, TypeError, RecursionError):
            sound = False
        if not sound:
            logger.warning("%s: a damaged line is left out", path)
        elif last_step is None or step <= last_step:
            found.append((step, captions))
    return found


def _line(step: int, captions: Mapping[str, str]) -> str:
    return json.dumps({"step": step, "captions": captions}) + "\n"


def _curves(path: pathlib.Path) -> Mapping[str, Curve]:
    """Return steps and values of each column of a table, where it is filled."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for row in sound_rows(path) if path.exists() else ():
        step = int(row.pop("step"))
        for column, cell in row.items():
            if cell:
                steps, values = curves.setdefault(column, ([], []))
                steps.append(step)
                values.append(float(cell))
    return curves


def _sample(record: Record, images: pathlib.Path) -> Sample:
    picture = None
    for place in (images / record.folder / record.filename, images / record.filename):
        if record.filename and picture is None and place.is_file():
            try:
                picture = data_url("image/webp", thumbnail(place, _PIXELS))
            except SparsecapError as error:
                logger.warning("no picture in the summary: %s", error)
    return Sample(str(record.image_id), record.raw, picture)

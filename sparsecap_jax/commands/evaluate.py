"""Scores of trained runs on a split of a dataset (`sparsecap evaluate`)."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import best_caption, to_coco
from sparsecap_jax.captioning.search import SearchOptions, check_names
from sparsecap_jax.captioning.stream import CaptionStream
from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.data.features import FeatureStore
from sparsecap_jax.data.karpathy import ImageId
from sparsecap_jax.errors import ConfigError, DataError, SparsecapError
from sparsecap_jax.evaluation.comparison import interval, resampled
from sparsecap_jax.evaluation.judging import Judged
from sparsecap_jax.evaluation.metrics import (
    METRICS,
    full_scores,
    load_extras,
    more_lines,
    write_scores,
)
from sparsecap_jax.evaluation.result_files import load_attention
from sparsecap_jax.files import read_settings
from sparsecap_jax.locks import remove_strays
from sparsecap_jax.pruning.summary import weight_counts
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.directory import LoadedRun, load_run
from sparsecap_jax.runs.finished import finished_weights
from sparsecap_jax.runs.overrides import change_data
from sparsecap_jax.runs.published import resolve_run, results_folder
from sparsecap_jax.settings import fields_of
from sparsecap_jax.text import counted

CAPTIONS = "captions.json"
_SECONDS = 10.0  # between lines of progress


def evaluate_run(
    workdir: str | pathlib.Path | Sequence[str | pathlib.Path],
    *,
    split: str = "test",
    step: int | str = "best",
    output: str | pathlib.Path | None = None,
    dataset: Dataset | None = None,
    changes: Sequence[str] = (),
    attention: bool | None = None,
    backend: str = "xla",
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "",
    document_frequency: str | pathlib.Path = "",
    spice_jars: str | pathlib.Path = "",
    groups: str | pathlib.Path = "",
    report: Callable[[str], None] = print,
    **search: Any,
) -> dict[str, Any]:
    """Caption a split with a run and score the captions.

    The same call continues after an interruption, from `captions.json.partial`.

    Args:
        workdir: the run directory, or the name of a captioner that comes with the package; its
            config names the dataset. Of several, which caption as an ensemble, the first one's
            does.
        split: "val" or "test".
        step: the weights: "best", "last", or the step of a checkpoint, see
            `runs.directory.load_variables`.
        output: folder for `captions.json`, `scores.json`, and the scores of each image (see
            `evaluation.metrics.write_scores`); by default
            `WORKDIR/SPLIT_beam_SIZE` (other searches: `WORKDIR/SPLIT_SEARCH`; other weights:
            `..._last`, `..._step_N`), for a name `NAME_SPLIT_beam_SIZE`. An ensemble needs one.
        dataset: the dataset, if it is open already.
        changes: `data.FIELD=VALUE`, where the dataset is another than the config says.
        attention: whether entries of `captions.json` have the weights of the regions for each
            word; None: where those that are there have them.
        backend: runtime of the model, see `Captioner`.
        metrics: see `score_captions`.
        tokenizer: see `score_captions`; "" for "unicode" where the config says so, else "auto".
        document_frequency: see `evaluate_caption_files`.
        spice_jars: see `score_captions`.
        groups: see `evaluate_caption_files`.
        report: takes one line of progress at a time.
        **search: see `SearchOptions` and `whole_search`. The caption of the best score counts.

    Returns:
        Scores on the 0-1 scale (`METEOR` None where Java is missing) with 95% intervals,
        figures of the "text" (see `text_statistics.describe`), `bytes` of the weights (of all
        members; None for a checkpoint) and their sparsity, see `pruning.summary.weight_counts`; the
        content of `scores.json`. A split without captions, such as COCO's test2014, has no scores.

    Raises:
        SparsecapError: the run or its data are missing or broken.
    """
    if split not in ("val", "test"):
        raise ConfigError(f"split is {split!r}; expected 'val' or 'test'")
    report = report if processes.is_first() else _silent
    members = [workdir] if isinstance(workdir, str | pathlib.Path) else list(workdir)
    if len(members) != 1 and output is None:
        raise ConfigError("output is None; expected a folder for the results of an ensemble")
    directories = [resolve_run(member) for member in members]
    runs = [load_run(directory, step) for directory in directories]
    config = change_data(runs[0].config, changes)
    captioner = Captioner(dataclasses.replace(runs[0], config=config), *runs[1:], backend=backend)
    check_names(search)
    search = whole_search(runs[0], config, search, split)
    title = _title(split, step, search)
    name = title.replace(", ", "_").replace(" ", "_")
    folder = pathlib.Path(output or results_folder(members[0], name))
    if attention is None and (attention := _has_attention(folder)):
        report(f"{folder}: has attention, which is made anew (--noattention leaves it out)")
    if changed := _other_search(folder, search):
        report(f"{folder}: results of {changed} are replaced")
    captioner.check_features(config.data.features or config.data.dir)
    with processes.first_ahead():  # it may have to be made
        dataset = dataset or load_dataset(config.data, need_boxes=captioner.needs_boxes)
    records = {record.image_id: record for record in dataset.splits[split]}
    if not records:
        raise DataError(f"{split} split of {config.data.dir or config.data.name}: no images")
    settings = {"checkpoint": [*map(str, directories)], "weights": captioner.checksum}
    settings |= {"data": config.data.dir, "changes": [*changes], "attention": attention}
    settings |= {**{key: str(value) for key, value in search.items()}}
    options = {"batch_size": config.data.eval_batch_size, "attention": attention, **search}
    references = {image_id: record.raw for image_id, record in records.items()}
    extras = load_extras(records, document_frequency, spice_jars, groups)
    caption = functools.partial(
        _caption, captioner, dataset.store, list(records), title, report, options
    )
    if not processes.is_first():  # the first one writes all captions, and scores them
        caption(None)
        return processes.on_first(dict)
    with CaptionStream(folder / CAPTIONS, settings) as stream:
        remove_strays(folder, "scores.json")
        rate = caption(stream)
        captions = {image_id: stream.entries[image_id]["caption"] for image_id in records}
        if any(references.values()):
            by_config = "unicode" if config.eval.tokenizer == "unicode" else "auto"
            training = [t for record in dataset.splits.get("train", ()) for t in record.captions]
            scores, judged = full_scores(
                captions, references, metrics, tokenizer or by_config, extras, training or None
            )
        stream.finish(list(records))
        if not any(references.values()):  # COCO's test2014
            report(f"{title}: no references | {rate}\nwrote {folder}/captions.json")
            return processes.on_first(lambda: {"images": len(captions), **search})
        files = directories if step == "best" else []
        result = {**scores, **_intervals(scores, judged), **_size(runs, files), **search}
        result["weights"] = settings["weights"]
        name = f"{step:08d}" if isinstance(step, int) else step
        write_scores(folder / "scores.json", result, judged, captions, name)
    _report_scores(f"{title}: {{}} | {rate}", judged, result, report)
    report(f"wrote {folder}/captions.json, scores.json and those of each image")
    return processes.on_first(lambda: result)


def whole_search(
    run: LoadedRun, config: ConfigDict, search: Mapping[str, Any], split: str = "test"
) -> dict[str, Any]:
    """Return the given options and, where no other search is asked for, the run's `search.json`.

    What neither says of a beam search is the config's `eval.beam_size_val` or `_test` and
    `eval.length_penalty`.
    """
    own = {} if "search" in search else run.search
    whole = {"search": "beam", **own, **search}
    if whole["search"] != "beam":
        return whole
    size, penalty = config.eval[f"beam_size_{split}"], config.eval.length_penalty
    return {"search": "beam", "beam_size": size, "length_penalty": penalty, **whole}


def _intervals(scores: Mapping[str, Any], judged: Judged) -> dict[str, list[float]]:
    """Return 95% intervals of the scores that are means over images."""
    drawn = resampled(judged.sums) if judged.sums else {}
    return {f"{name}_95%": interval(drawn[name]) for name in scores if name in drawn}


def _report_scores(
    line: str, judged: Judged, result: Mapping[str, Any], report: Callable[[str], None]
) -> None:
    """Report scores, in the braces of `line`, and what else is known of the captions."""
    shown = " | ".join(f"{k} {v:.4f}" for k, v in judged.scores.items() if v is not None)
    if "CIDEr_95%" in result:
        shown += " (95% from {:.4f} to {:.4f})".format(*result["CIDEr_95%"])
    report(line.format(shown))
    for one in more_lines(result):
        report(one)


def _silent(line: str) -> None:
    """Take a line of progress of a process that is not the first."""


def _has_attention(folder: pathlib.Path) -> bool:
    """Return whether captions of an earlier evaluation have attention."""
    with contextlib.suppress(SparsecapError):
        return bool(load_attention(folder / CAPTIONS))
    return False


def _other_search(folder: pathlib.Path, search: Mapping[str, Any]) -> str:
    """Return the options of the search of earlier scores, where they differ from `search`."""
    noted: Mapping[str, Any] = {}
    with contextlib.suppress(SparsecapError):
        noted = read_settings(folder / "scores.json")
    plain = {k: [*v] if isinstance(v, tuple) else v for k, v in search.items()}
    known = [k for k in fields_of(SearchOptions) if k in noted and type(noted[k]) is not dict]
    names = [k for k in known if noted[k] != plain.get(k)]
    missing = [k for k in plain if noted and k not in noted]
    return ", ".join([f"{k} {noted[k]!r:.80}" for k in names] + [f"no {k}" for k in missing])


def _title(split: str, step: int | str, search: Mapping[str, Any]) -> str:
    """Return the title of results, which names their folder too."""
    title = f"{split}, {search['search']}"
    if search["search"] == "beam":
        title += f" {search['beam_size']}"
    if step != "best":
        title += ", last" if step == "last" else f", step {step}"
    return title


def _size(runs: Sequence[LoadedRun], directories: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Return sparsity, nonzeros and bytes; the last where all weights are finished ones."""
    files = [file for file in map(finished_weights, directories) if file]
    complete = files and len(files) == len(directories)
    size = sum(file.stat().st_size for file in files) if complete else None
    params, masks = (
        {str(number): getattr(run, name) for number, run in enumerate(runs)}
        for name in ("params", "masks")
    )
    return {**weight_counts(jax.device_get(params), jax.device_get(masks)), "bytes": size}


def _caption(
    captioner: Captioner,
    store: FeatureStore,
    image_ids: Sequence[ImageId],
    title: str,
    report: Callable[[str], None],
    options: Mapping[str, Any],
    stream: CaptionStream | None,
) -> str:
    """Caption the images that have no caption yet; report progress and return the speed.

    Of several processes, each captions whole batches, as one alone would; the first one, which has
    the `stream`, writes them.
    """
    done = {*processes.on_first(lambda: list(stream.done if stream else ()))}
    remaining = [image_id for image_id in image_ids if image_id not in done]
    if done:
        report(f"continuing: {len(done)} of {counted(len(image_ids), 'image')} captioned")
    if not remaining:
        return "captioned before"
    start = reported = time.monotonic()
    size = 1 if processes.count() == 1 else options["batch_size"]
    parts, count = list(processes.deal_out(remaining, size)), 0
    dealt = [image_id for part in parts for image_id in part]
    results = captioner.caption_store(store, dealt, **options)
    for part in processes.between(parts):
        captioned = itertools.islice(results, len(part))
        entries = [to_coco(image_id, best_caption(captions)) for image_id, captions in captioned]
        for entry in itertools.chain(*processes.gather_on_first(entries)):
            count += 1
            if stream:
                stream.write(entry)
        now = time.monotonic()
        rate = f"{count / max(now - start, 1e-9):.1f} images/s"
        if now - reported > _SECONDS:
            reported = now
            report(f"{title}: {count}/{len(remaining)} images | {rate}")
    return rate

"""What files of scores hold: scores of all images, of groups, of each image, and of the text."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from sparsecap_jax.data.records import normalize_id
from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.java_scores import check_spice_jars
from sparsecap_jax.evaluation.judging import Judged, corpus_scores, judge_captions
from sparsecap_jax.evaluation.text_statistics import copied, describe
from sparsecap_jax.files import read_json, write_json, write_table
from sparsecap_jax.scst.document_frequency import DocumentFrequency
from sparsecap_jax.text import counted

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Extras:
    """Settings of `full_scores` that are read from files, see `evaluate_caption_files`."""

    frequency: DocumentFrequency | None = None
    corpus: str = ""
    spice_jars: str | os.PathLike = ""
    groups: Mapping[Hashable, str] = dataclasses.field(default_factory=dict)


def load_extras(
    images: Iterable[Hashable],
    document_frequency: str | os.PathLike = "",
    spice_jars: str | os.PathLike = "",
    groups: str | os.PathLike = "",
) -> Extras:
    """Read and check them, before captions are made; DataError where a file is at fault."""
    frequency, corpus = None, ""
    if document_frequency:
        frequency = DocumentFrequency.load(document_frequency)
        if frequency.tokens != "words":
            raise DataError(f"{document_frequency}: counts ids of words; expected words for CIDEr")
        name = frequency.dataset or pathlib.Path(document_frequency).name
        corpus = f"{name}, {counted(frequency.num_images, 'image')}"
    if spice_jars:
        check_spice_jars(spice_jars)
    return Extras(frequency, corpus, spice_jars, load_groups(groups, images) if groups else {})


def full_scores(
    captions: Mapping,
    references: Mapping,
    metrics: Sequence[str],
    tokenizer: str,
    extras: Extras,
    training: Iterable[str] | None = None,
) -> tuple[dict[str, Any], Judged]:
    """Return scores along with those of groups and figures of the text; and what they stem from.

    Args: see `evaluate_caption_files`; `training` are the captions of the training split.
    """
    judged = judge_captions(
        captions,
        references,
        metrics,
        tokenizer,
        document_frequency=extras.frequency,
        spice_jars=extras.spice_jars,
    )
    result: dict[str, Any] = {**judged.scores, "images": len(captions)}
    if extras.corpus:
        result["CIDEr_df"] = extras.corpus
    if extras.groups:
        result["groups"] = _group_scores(judged, extras.groups)
    result["text"] = describe([*judged.captions.values()], [*judged.references.values()])
    if training is not None:
        result["text"]["copied"] = copied(captions.values(), training)
    return result, judged


def more_lines(result: Mapping[str, Any]) -> list[str]:
    """Return lines on what `full_scores` adds to scores."""
    lines = []
    if "CIDEr_df" in result:
        lines.append(f"CIDEr: document frequencies of {result['CIDEr_df']}, not of the references")
    for name, group in result.get("groups", {}).items():
        shown = " | ".join(f"{k} {v:.4f}" for k, v in group.items() if k != "images")
        lines.append(f"group {name}: {counted(group['images'], 'image')} | {shown}")
    lines.append("text: " + " | ".join(f"{k} {v:.4g}" for k, v in result["text"].items()))
    return lines


def load_groups(path: str | os.PathLike, images: Iterable[Hashable]) -> dict[Hashable, str]:
    """Read `{image id: group}` and return the groups of `images`, those that have one.

    Raises:
        DataError: the file is missing or broken, has an image twice, or none of the images.
    """
    content = read_json(path, "{image id: group}")
    if not isinstance(content, dict):
        raise DataError(f"{path}: found {content!r:.80}, expected {{image id: group}}")
    groups: dict[Hashable, str] = {}
    for key, group in content.items():
        if isinstance(group, bool) or not isinstance(group, str | int):
            raise DataError(f"{path}: {key!r}: found {group!r:.80}, expected the name of a group")
        image = normalize_id(key)
        if image in groups:
            raise DataError(f"{path}: {key!r}: image {image!r} is there twice, expected once")
        groups[image] = str(group)
    images = [*images]
    members: dict[Hashable, str] = {i: groups[i] for i in images if i in groups}
    if not members:
        raise DataError(f"{path}: has none of the captions' images; expected {{image id: group}}")
    if len(members) < len(images):
        logger.warning("%s: no group for %d images", path, len(images) - len(members))
    return members


def _group_scores(judged: Judged, members: Mapping[Hashable, str]) -> dict[str, dict[str, Any]]:
    """Score each group; CIDEr keeps the document frequencies of all images."""
    rows: dict[str, list[int]] = {}
    for row, image in enumerate(judged.images):
        if image in members:
            rows.setdefault(members[image], []).append(row)
    groups: dict[str, dict[str, Any]] = {}
    for name, of_group in sorted(rows.items()):
        sums = {kind: values[of_group].sum(axis=0) for kind, values in judged.sums.items()}
        scores = corpus_scores(sums, len(of_group))
        groups[name] = {"images": len(of_group)}
        groups[name] |= {
            metric: float(scores[metric]) for metric in judged.scores if metric in scores
        }
    return groups


def write_scores(
    path: str | os.PathLike,
    result: Mapping[str, Any],
    judged: Judged,
    captions: Mapping[Any, str],
    step: str = "",
) -> list[str]:
    """Write scores as JSON, and two files with those of each image next to it.

    `STEM_per_image.csv` is a table with the captions; `STEM_detailed.json`, or
    `score_STEP_detailed.json`, is the reference's form, which its caption explorer reads: a list of
    `{"image_id", "Bleu_1", ...}`.

    Args:
        path: file for `result`, its name ends in `.json`.
        result: what to write.
        judged: scores of each image.
        captions: texts of the captions.
        step: names the weights of a run.

    Returns:
        The names of the files.
    """
    path = pathlib.Path(path)
    write_json(path, result)
    table = path.with_name(f"{path.stem}_per_image.csv")
    rows = [
        {"image_id": image, "caption": captions[image], **scores}
        for image, scores in judged.images.items()
    ]
    write_table(table, rows)
    detailed = path.with_name(f"{f'score_{step}' if step else path.stem}_detailed.json")
    entries: list[dict[str, Any]] = [
        {"image_id": image, **scores} for image, scores in judged.images.items()
    ]
    for entry, of_kind in zip(entries, judged.spice or [], strict=False):
        entry["SPICE"] = of_kind
    write_json(detailed, [dict(sorted(entry.items())) for entry in entries])
    return [path.name, table.name, detailed.name]

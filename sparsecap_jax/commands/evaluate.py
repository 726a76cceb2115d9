"""Evaluating a trained run on a split of its dataset (`launch/evaluate.py`)."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import best_caption, to_coco
from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.bootstrap import bootstrap_interval
from sparsecap_jax.evaluation.metrics import METRICS, score_captions
from sparsecap_jax.files import write_json
from sparsecap_jax.runs.directory import WEIGHTS, load_run, weight_counts


def evaluate_run(
    workdir: str | pathlib.Path,
    *,
    split: str = "test",
    output: str | pathlib.Path | None = None,
    dataset: Dataset | None = None,
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "auto",
    report: Callable[[str], None] = print,
    **search: Any,
) -> dict[str, Any]:
    """Caption a split with the best weights of a run and score the captions.

    Args:
        workdir: the run directory; its config names the dataset.
        split: "val" or "test".
        output: folder for `captions.json` and `scores.json`; by default
            `WORKDIR/SPLIT_beam_SIZE` (other searches: `WORKDIR/SPLIT_SEARCH`).
        dataset: the run's dataset, where it is open already.
        metrics: see `score_captions`.
        tokenizer: see `score_captions`.
        report: takes one line of progress at a time.
        **search: see `SearchOptions`; beams and their length penalty are by default the config's
            (`eval.beam_size_val` or `_test`, `eval.length_penalty`). Of several captions of an
            image the one of the best score counts.

    Returns:
        Scores on the 0-1 scale (`METEOR` None where Java is missing), and `sparsity`, `nonzeros`,
        `bytes` of the weights; `scores.json` holds the same. Of a split without captions, such as
        COCO's test2014, there are none.

    Raises:
        SparsecapError: the run or its data are missing or broken.
    """
    if split not in ("val", "test"):
        raise ConfigError(f"split is {split!r}; expected 'val' or 'test'")
    workdir = pathlib.Path(workdir)
    run = load_run(workdir)
    captioner = Captioner(run)
    search = _with_defaults(search, run.config.eval, split)
    if dataset is None:
        dataset = load_dataset(run.config.data, need_boxes=captioner.needs_boxes)
    records = {record.image_id: record for record in dataset.splits[split]}
    captions = {
        image_id: best_caption(found)
        for image_id, found in captioner.caption_store(
            dataset.store,
            list(records),
            batch_size=run.config.data.eval_batch_size,
            **search,
        )
    }
    name = search["search"]
    shown_search = f"beam {search['beam_size']}" if name == "beam" else name
    folder = (
        pathlib.Path(output) if output else workdir / f"{split} {shown_search}".replace(" ", "_")
    )
    write_json(folder / "captions.json", to_coco(captions))
    if not any(record.raw for record in records.values()):  # COCO's test2014
        report(f"{split}, {shown_search}: no references\nwrote {folder}/captions.json")
        return {"images": len(captions), **search}
    scores = score_captions(
        {image_id: caption.text for image_id, caption in captions.items()},
        {image_id: record.raw for image_id, record in records.items()},
        metrics=metrics,
        tokenizer=tokenizer,
        per_image=True,
    )
    each = scores.pop("per_image").values()
    intervals = {
        f"{name}_95%": list(bootstrap_interval([image[name] for image in each]))
        for name in ("CIDEr", "ROUGE_L")
        if name in scores
    }
    weights = workdir / WEIGHTS
    result = {
        **scores,
        **intervals,
        **weight_counts(jax.device_get(run.params)),
        "bytes": weights.stat().st_size if weights.exists() else None,
        "images": len(captions),
        **search,
    }
    write_json(folder / "scores.json", result)
    shown = " | ".join(f"{k} {v:.4f}" for k, v in scores.items() if v is not None)
    if "CIDEr_95%" in intervals:
        shown += " (95% from {:.4f} to {:.4f})".format(*intervals["CIDEr_95%"])
    report(f"{split}, {shown_search}: {shown}\nwrote {folder}/captions.json and scores.json")
    return result


def _with_defaults(search: dict[str, Any], config: ConfigDict, split: str) -> dict[str, Any]:
    """Take what the search does not say from the config, where it has a use for it."""
    search = {"search": "beam", **search}
    if search["search"] == "beam":
        search = {"beam_size": config[f"beam_size_{split}"], **search}
        search = {"length_penalty": config.length_penalty, **search}
    return search

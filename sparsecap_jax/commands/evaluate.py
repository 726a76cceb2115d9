"""Scores of a trained run on a split of its dataset (`launch/evaluate.py`)."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from sparsecap_jax import stopping
from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import best_caption, to_coco
from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.metrics import METRICS, bootstrap_interval, score_captions
from sparsecap_jax.files import write_json
from sparsecap_jax.runs.directory import WEIGHTS, load_run, weight_counts
from sparsecap_jax.runs.published import resolve_run, results_folder


def evaluate_run(
    workdir: str | pathlib.Path,
    *,
    split: str = "test",
    output: str | pathlib.Path | None = None,
    dataset: Dataset | None = None,
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "",
    report: Callable[[str], None] = print,
    **search: Any,
) -> dict[str, Any]:
    """Caption a split with the best weights of a run and score the captions.

    Args:
        workdir: the run directory, or the name of a captioner that comes with the package; its
            config names the dataset.
        split: "val" or "test".
        output: folder for `captions.json` and `scores.json`; by default
            `WORKDIR/SPLIT_beam_SIZE` (other searches: `WORKDIR/SPLIT_SEARCH`), for a name
            `NAME_SPLIT_beam_SIZE`.
        dataset: the run's dataset, if it is open already.
        metrics: see `score_captions`.
        tokenizer: see `score_captions`; "" for "unicode" where the config says so, else "auto".
        report: takes one line of progress at a time.
        **search: see `SearchOptions`; beams and their length penalty are by default the config's
            (`eval.beam_size_val` or `_test`, `eval.length_penalty`). The caption of the best
            score counts.

    Returns:
        Scores on the 0-1 scale (`METEOR` None where Java is missing), and `sparsity`, `nonzeros`,
        `bytes` of the weights; the content of `scores.json`. A split without captions, such as
        COCO's test2014, has no scores.

    Raises:
        SparsecapError: the run or its data are missing or broken.
    """
    if split not in ("val", "test"):
        raise ConfigError(f"split is {split!r}; expected 'val' or 'test'")
    directory = resolve_run(workdir)
    run = load_run(directory)
    captioner = Captioner(run)
    search = {"search": "beam", **search}
    if search["search"] == "beam":
        size, penalty = run.config.eval[f"beam_size_{split}"], run.config.eval.length_penalty
        search = {"length_penalty": penalty, "beam_size": size, **search}
    dataset = dataset or load_dataset(run.config.data, need_boxes=captioner.needs_boxes)
    records = {record.image_id: record for record in dataset.splits[split]}
    results = captioner.caption_store(
        dataset.store, list(records), batch_size=run.config.data.eval_batch_size, **search
    )
    captioned = stopping.between(results, advice="")
    captions = {image_id: best_caption(candidates) for image_id, candidates in captioned}
    title = f"{split}, {search['search']}"
    if search["search"] == "beam":
        title += f" {search['beam_size']}"
    name = title.replace(", ", "_").replace(" ", "_")
    folder = pathlib.Path(output or results_folder(workdir, name))
    write_json(folder / "captions.json", to_coco(captions))
    if not any(record.raw for record in records.values()):  # COCO's test2014
        report(f"{title}: no references\nwrote {folder}/captions.json")
        return {"images": len(captions), **search}
    by_config = "unicode" if run.config.eval.tokenizer == "unicode" else "auto"
    scores = score_captions(
        {image_id: caption.text for image_id, caption in captions.items()},
        {image_id: record.raw for image_id, record in records.items()},
        metrics=metrics,
        tokenizer=tokenizer or by_config,
        per_image=True,
    )
    per_image = scores.pop("per_image").values()
    intervals = {
        f"{metric}_95%": list(bootstrap_interval([image[metric] for image in per_image]))
        for metric in ("CIDEr", "ROUGE_L")
        if metric in scores
    }
    weights = directory / WEIGHTS
    size = weights.stat().st_size if weights.exists() else None
    counts = {**weight_counts(jax.device_get(run.params)), "bytes": size, "images": len(captions)}
    result = {**scores, **intervals, **counts, **search}
    write_json(folder / "scores.json", result)
    shown = " | ".join(f"{k} {v:.4f}" for k, v in scores.items() if v is not None)
    if "CIDEr_95%" in intervals:
        shown += " (95% from {:.4f} to {:.4f})".format(*intervals["CIDEr_95%"])
    report(f"{title}: {shown}\nwrote {folder}/captions.json and scores.json")
    return result

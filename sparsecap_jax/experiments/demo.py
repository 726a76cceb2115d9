"""Demo on embedded data: train dense and 95%-sparse captioners and compare their captions."""

import pathlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.commands.evaluate_table import COLUMNS, format_table
from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.evaluation.caption_picture import caption_picture, wrong_words
from sparsecap_jax.evaluation.metrics import score_captions
from sparsecap_jax.evaluation.plots import training_curves
from sparsecap_jax.evaluation.toy_relations import FACTS, wrong_facts
from sparsecap_jax.files import read_json, write_json
from sparsecap_jax.runs.loop import train

MODELS = {"dense": "", "supermask": "supermask"}


def run_demo(
    configs: Mapping[str, ConfigDict],
    workdir: str | pathlib.Path,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train and evaluate a model for each config, and score a constant caption for comparison.

    Along with the scores, it counts the captions that state wrong facts, which scores hide.

    Writes `WORKDIR/results.json`, `captions.png`, `curves.png` and a run directory for each model.

    Args:
        configs: config by name; all of the same toy scenes.
        workdir: folder to write to; a second call continues there.
        report: takes one line at a time.

    Returns:
        Content of `results.json`: `{name: {"sparsity", "nonzeros", "bytes", scores..., "wrong"}}`
        with `baseline` among the names; None for a figure that does not apply. "wrong" holds the
        counts of `wrong_facts`.
    """
    workdir = pathlib.Path(workdir)
    results = {}
    for name, config in configs.items():
        report(f"--- {name}")
        train(config, workdir / name, report)
        results[name] = evaluate_run(workdir / name, report=report)
    dataset = load_dataset(next(iter(configs.values())).data, need_boxes=True)
    results["baseline"] = constant_caption_scores(dataset)
    captions = {}
    for name, config in configs.items():
        file = workdir / name / f"test_beam_{config.eval.beam_size_test}" / "captions.json"
        captions[name] = {entry["image_id"]: entry["caption"] for entry in read_json(file)}
    ids = [record.image_id for record in dataset.splits["test"]]
    everything = {**captions, "baseline": dict.fromkeys(ids, results["baseline"]["caption"])}
    for name, texts in everything.items():
        wrong = wrong_facts(texts, dataset.images.parent)
        results[name] = {**dict.fromkeys(COLUMNS), **results[name], "wrong": wrong}
    write_json(workdir / "results.json", results)
    draw_captions(workdir / "captions.png", dataset, captions, results)
    training_curves(workdir / "curves.png", {name: workdir / name for name in configs})
    report(format_table(results))
    report(f"captions of {len(ids)} that state a wrong fact:")
    report(format_table({name: row["wrong"] for name, row in results.items()}, FACTS))
    report(f"results: {workdir / 'results.json'}")
    report(f"captions, along with their scenes: {workdir / 'captions.png'}")
    report(f"training curves: {workdir / 'curves.png'}")
    report(f"sparse model (run directory): {workdir / 'supermask'}")
    return results


def draw_captions(
    path: pathlib.Path,
    dataset: Dataset,
    captions: Mapping[str, Mapping],
    results: Mapping[str, Mapping[str, Any]],
) -> None:
    """Draw the first two test scenes, and the next one in which the last model errs."""
    records, last = dataset.splits["test"], list(captions)[-1]
    chosen = [*records[:2]]
    for record in records[2:]:
        if any(wrong for _, wrong in wrong_words(captions[last][record.image_id], record.raw)):
            chosen.append(record)
            break
    removed = results[last]["sparsity"]
    title = "Two captioners of drawn scenes, trained alike; one has lost "
    title += f"{removed:.0%} of its weights. Red: words of no reference."
    sizes = {name: results[name]["bytes"] for name in captions}
    caption_picture(path, chosen, dataset, captions, sizes=sizes, title=title)


def constant_caption_scores(dataset: Dataset, candidates: int = 20) -> dict[str, Any]:
    """Score the test split with one caption for all images, the best of the frequent ones.

    The most frequent captions of the training split are tried on the validation split.
    """
    counts = Counter(text for record in dataset.splits["train"] for text in record.raw)
    tried = [text for text, _ in counts.most_common(candidates)]

    def scores(text: str, split: str, **options: Any) -> dict[str, Any]:
        references = {record.image_id: record.raw for record in dataset.splits[split]}
        return score_captions(dict.fromkeys(references, text), references, **options)

    options = {"metrics": ("CIDEr",), "tokenizer": "python"}
    best = max(tried, key=lambda text: scores(text, "val", **options)["CIDEr"])
    return {**scores(best, "test"), "caption": best, "images": len(dataset.splits["test"])}

"""CIDEr that model files with rounded values lose, for finished runs.

python benchmarks/rounding.py --run=flickr8k-mini=data/flickr8k_mini --run=runs/demo/supermask

A run is a directory or the name of a captioner of the package, and `=DIR` the folder of its data
where that is another than its config says. Its validation split is captioned with float32, float16
and int8, with the search of its `search.json`, or the beams of its config.
"""

import argparse
import pathlib
import tempfile

from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.data.datasets import load_dataset
from sparsecap_jax.evaluation.comparison import compare, pool
from sparsecap_jax.evaluation.judging import judge_captions
from sparsecap_jax.files import read_json, write_atomically
from sparsecap_jax.model_files import FORMS
from sparsecap_jax.models import model_class
from sparsecap_jax.runs.directory import load_run, save_model
from sparsecap_jax.runs.overrides import change_data
from sparsecap_jax.runs.published import resolve_run

HEADER = """# CIDEr with rounded values

CIDEr x 100 on the validation split with the values of a model file as they are, in float16, and in
int8 ([formats.md](../formats.md)); masks and everything else are the same. The interval is that of
int8's CIDEr less float32's, over images drawn with replacement
([metrics.md](../metrics.md#comparison)).

`{command}`

`runs/demo` is that of `make demo`; `runs/toy_90` and `runs/toy_975` are those of `launch/train.py`
with `--config=configs/toy.py:supermask,sparsity=0.9` and
`--config=configs/toy.py:supermask,sparsity=0.975,sparsity_weight=80`.

| model | sparsity | images | float32 | float16 | int8 | 95% | captions that differ: float16, int8 |
|---|---|---|---|---|---|---|---|
"""


def row(name, data):
    """Return a line of the table."""
    run = load_run(resolve_run(name))
    changes = [f"data.dir={data}"] if data else []
    needs_boxes = getattr(model_class(run.config.model.name), "needs_boxes", False)
    dataset = load_dataset(change_data(run.config, changes).data, need_boxes=needs_boxes)
    scores, captions = {}, {}
    for form in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "model.scap")
            save_model(file, run, form)
            scores[form] = evaluate_run(
                file,
                split="val",
                dataset=dataset,
                changes=changes,
                metrics=("CIDEr",),
                output=pathlib.Path(folder, "scores"),
                report=lambda line: None,
                **run.search,
            )
            results = read_json(pathlib.Path(folder, "scores/captions.json"))
        captions[form] = {result["image_id"]: result["caption"] for result in results}
        print(name, form, scores[form]["CIDEr"], flush=True)
    first = scores[FORMS[0]]
    changed = [
        sum(text != captions[form][image] for image, text in captions[FORMS[0]].items())
        for form in FORMS[1:]
    ]
    references = {record.image_id: record.raw for record in dataset.splits["val"]}
    judged = {form: judge_captions(captions[form], references, ["CIDEr"]) for form in FORMS[::2]}
    low, high = compare(pool(judged))["differences"][0]["CIDEr"]["95%"]  # float32 less int8
    figures = [f"{100 * scores[form]['CIDEr']:.1f}" for form in FORMS]
    model = f"{pathlib.Path(name).name} ({run.config.model.name})"
    cells = [model, f"{first['sparsity']:.1%}", first["images"], *figures]
    cells.append(f"{-100 * high:+.1f} to {-100 * low:+.1f}")
    return "| {} |\n".format(" | ".join(map(str, [*cells, ", ".join(map(str, changed))])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", required=True, help="RUN or RUN=DATA")
    parser.add_argument("--output", default="docs/results/rounding.md", help="page to write")
    arguments = parser.parse_args()
    rows = [row(*run.partition("=")[::2]) for run in arguments.run]
    runs = " ".join(f"--run={run.partition('=')[0]}" for run in arguments.run)
    with write_atomically(arguments.output) as file:
        file.write(HEADER.format(command=f"python benchmarks/rounding.py {runs}"))
        file.writelines(rows)


if __name__ == "__main__":
    main()

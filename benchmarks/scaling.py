r"""Estimates of training past one CPU: FLOPs, bytes, memory, links, hours of the papers' tables.

    python benchmarks/scaling.py --output=docs/results/scaling.md

Nothing is trained. Every matrix product of a step at the papers' sizes is counted from its jaxpr
(model_costs.py), and each takes the longest of its arithmetic, its traffic and `--latency`;
docs/scaling.md has the formulas. Peak rates are those that the makers publish. `--compile` compiles
six steps for this CPU and adds what XLA says of their memory (minutes). The same model is compared
with the step times in docs/results/models.md, at this machine's own measured rates.
"""

import collections
import functools
import math
import pathlib
from typing import NamedTuple

from absl import app, flags
from model_costs import dots_of, floor_seconds, measured_rates, model_flops, total_flops
from paper_models import paper_config, random_regions
from step_cases import caption_batch, first_state, make_parts

_OUTPUT = flags.DEFINE_string("output", None, "Markdown file; by default the tables are printed.")
_LATENCY = flags.DEFINE_float("latency", 10.0, "Microseconds that a product takes at least.")
_SLACK = flags.DEFINE_float("slack", 3.0, "Times the floor that a step is assumed to take.")
_COMPILE = flags.DEFINE_bool("compile", False, "Compile steps for their memory.")
_RATES = flags.DEFINE_list(
    "rates", None, "GFLOP/s of this CPU and GB/s of its memory; by default measured now."
)
_SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)

IMAGES, FLOAT = 15, 4
TRAIN_IMAGES = 113_287  # Karpathy's training split of COCO
# A CPU's step times, seconds, of the second table of docs/results/models.md, "Speed"; its rates
# were 210 GFLOP/s and 50 GB/s.
CPU_SECONDS = {
    ("up_down", "supermask"): 1.93,
    ("up_down", "none"): 1.64,
    ("ort", "supermask"): 2.02,
    ("ort", "none"): 1.95,
    ("transformer", "none"): 1.71,
    ("acort", "none"): 1.94,
    ("soft_attention", "none"): 0.52,
}
COMPILED = [("up_down", "supermask"), ("up_down", "none"), ("ort", "supermask"), ("ort", "none")]
COMPILED += [("acort", "none"), ("soft_attention", "none")]


class Machine(NamedTuple):
    """Published peaks of one device: FLOP/s, bytes/s, bytes, bytes/s of its link one way, USD/h.

    `flops` is the rate of float32 products at JAX's default precision. Prices are assumptions.
    """

    flops: float
    bandwidth: float
    memory: float
    link: float
    price: float


MACHINES = {
    "A100": Machine(156e12, 2.039e12, 80e9, 300e9, 2.0),  # SXM 80 GB; TF32
    "H100": Machine(494.7e12, 3.35e12, 80e9, 450e9, 3.0),  # SXM; TF32 without sparsity
    "TPU v5e": Machine(197e12, 819e9, 16e9, 200e9, 1.2),  # bfloat16
}


class Cost(NamedTuple):
    """A training step: its products, bytes of the state and of its update, trained float32s."""

    products: list
    state: int
    update: int
    trained: int

    def seconds(self, machine, latency):
        """The floor: products one after the other, then the optimizer."""
        spent = floor_seconds(self.products, machine.flops, machine.bandwidth, latency)
        return spent + self.update / machine.bandwidth

    def link_seconds(self, machine, devices):
        """An all-reduce of the gradients around a ring."""
        return 2 * (devices - 1) / devices * FLOAT * self.trained / machine.link


def abstract(tree):
    """Shapes of a tree of arrays."""
    import jax

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@functools.cache
def traced(name, pruner_name, images, captions=5):
    """A step of teacher forcing: (function, abstract state, abstract batch)."""
    import jax

    from sparsecap_jax.pruning.step import SparseStep
    from sparsecap_jax.training.objectives import words_to_pack

    config = config_of(name)
    objective, pruner, tx = make_parts(config, pruner_name)
    batch = caption_batch(config, images)
    batch = batch._replace(tokens=batch.tokens.repeat(captions, 1)[:, :captions])
    batch = batch._replace(token_mask=batch.token_mask.repeat(captions, 1)[:, :captions])
    static = words_to_pack(batch.token_mask)
    step = SparseStep(pruner, tx, functools.partial(objective, static=static))
    state = jax.eval_shape(functools.partial(first_state, objective, pruner, tx))
    return step, state, abstract(batch)


def config_of(name):
    """The config of a model; `acort_small` is that of half the widths."""
    config = paper_config(name.removesuffix("_small"), _SCALE.value)
    if name.endswith("_small"):
        config |= {"d_model": config["d_model"] // 2}
        config |= {"dim_feedforward": config["dim_feedforward"] // 2}
    return config


def size(tree):
    """Bytes of a tree of arrays or shapes; keys count as eight."""
    import jax

    return sum(x.size * getattr(x.dtype, "itemsize", 8) for x in jax.tree.leaves(tree))


@functools.cache
def teacher_forcing(name, pruner_name, images=IMAGES, captions=5):
    """Cost of a step of teacher forcing."""
    step, state, batch = traced(name, pruner_name, images, captions)
    products = dots_of(step, state, batch)
    trained = size(state.params) // FLOAT
    if pruner_name == "supermask":
        trained += size(state.prune.masks) // FLOAT
    # Adam reads weight, gradient and two moments, and writes all but the gradient.
    return Cost(products, size(state), 7 * FLOAT * trained, trained)


@functools.cache
def self_critical(name, images, samples):
    """Cost of a self-critical step: the search, word by word, and the gradient of the samples."""
    import jax
    import numpy as np
    from paper_models import our_fields

    from sparsecap_jax.models import abstract_params, make_model
    from sparsecap_jax.types import Regions

    config = config_of(name)
    model = make_model(our_fields(config))
    variables = {"params": abstract_params(model)}
    regions = Regions(*random_regions(images, config))

    def word(variables, tokens, regions):
        context = model.apply(variables, regions, method="encode")
        carry = model.apply(variables, context, samples, method="init_carry")
        return model.apply(variables, carry, tokens, context, method="step")[1]

    def encode(variables, tokens, regions):
        return model.apply(variables, regions, method="encode")

    tokens = jax.ShapeDtypeStruct((images, samples), np.int32)
    once = collections.Counter(dots_of(encode, variables, tokens, regions))
    words = collections.Counter(dots_of(word, variables, tokens, regions)) - once
    length = config["max_seq_length"]
    search = [dot._replace(times=dot.times * length) for dot in words.elements()]
    gradient = teacher_forcing(name, "none", images, samples)
    return gradient._replace(products=search + gradient.products)


def cost_row(name, label, cost):
    """Cells on one step: what it does, and how long it takes at least on each machine."""
    flops = total_flops(cost.products)
    moved = sum(dot.bytes * dot.times for dot in cost.products)
    count = sum(dot.times for dot in cost.products)
    cells = [name, label, f"{flops / 1e12:.3f}", f"{moved / 1e9:.1f}", f"{count:,}"]
    cells += [f"{cost.state / 1e9:.2f}", f"{cost.update / 1e9:.2f}"]
    latency = _LATENCY.value * 1e-6
    for machine in MACHINES.values():
        cells.append(f"{1e3 * cost.seconds(machine, latency):.1f}")
    return cells


def table(titles, rows):
    """A Markdown table, the first two columns left-aligned."""
    lines = ["| " + " | ".join(titles) + " |", "|---|---" + "|--:" * (len(titles) - 2) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def steps_table():
    """One step of every recipe on one device."""
    rows = [cost_row(*key, teacher_forcing(*key)) for key in CPU_SECONDS]
    for name, images, samples in (("up_down", 5, 15), ("ort", 5, 15)):
        label = f"SCST {images}x{samples}"
        rows.append(cost_row(name, label, self_critical(name, images, samples)))
    titles = ["model", "step", "TFLOP", "GB of products", "products", "GB of state"]
    titles += ["GB of update", *(f"{name} ms" for name in MACHINES)]
    return table(titles, rows)


def devices_table():
    """Eight devices: the papers' batch split up, and a batch eight times as large."""
    rows, latency = [], _LATENCY.value * 1e-6
    for name, pruner in (("up_down", "none"), ("up_down", "supermask"), ("ort", "none")):
        for machine_name, machine in MACHINES.items():
            one = teacher_forcing(name, pruner).seconds(machine, latency)
            cells = [f"{name} {pruner}", machine_name, f"{1e3 * one:.1f}"]
            for images in (2, IMAGES):
                cost = teacher_forcing(name, pruner, images)
                link = cost.link_seconds(machine, 8)
                each = cost.seconds(machine, latency) + link
                speed = 8 * images / each / (IMAGES / one)
                cells += [f"{1e3 * each:.1f}", f"{1e3 * link:.1f}", f"{speed:.1f}x"]
            cells.append(f"{8 * IMAGES / each:,.0f}")
            rows.append(cells)
    titles = ["recipe", "machine", "1 device, ms", "8, batch 16, ms", "of it link", "images/s gain"]
    titles += ["8, batch 120, ms", "of it link", "images/s gain", "images/s needed"]
    return table(titles, rows)


def cpu_table():
    """The same model at this CPU's measured rates, against measured steps."""
    if _RATES.value:
        flops, bandwidth = (float(rate) * 1e9 for rate in _RATES.value)
    else:
        rates = measured_rates(_SCALE.value)
        flops, bandwidth = rates["flops"], rates["bandwidth"]
    here = Machine(flops, bandwidth, 0, 1, 0)
    rows = []
    for key, measured in CPU_SECONDS.items():
        floor = teacher_forcing(*key).seconds(here, 0.0)
        rows.append([*key, f"{floor:.2f}", f"{measured:.2f}", f"{measured / floor:.2f}"])
    text = f"Rates of the CPU: {here.flops / 1e9:.0f} GFLOP/s of float32 products, "
    text += f"{here.bandwidth / 1e9:.0f} GB/s of reading and writing an array in place.\n\n"
    return text + table(["model", "pruner", "floor, s", "measured, s", "measured / floor"], rows)


def memory_table():
    """What XLA says of steps compiled for this CPU, and FLOPs counted in two ways."""
    import jax

    rows = []
    for key in COMPILED:
        step, state, batch = traced(*key, IMAGES)
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        stats = compiled.memory_analysis()
        xla = compiled.cost_analysis()["flops"]
        cost = teacher_forcing(*key)
        total = size(state) + size(batch) + stats.temp_size_in_bytes
        cells = [*key, f"{size(state) / 1e9:.2f}", f"{stats.temp_size_in_bytes / 1e9:.2f}"]
        cells += [f"{total / 1e9:.2f}", f"{total / MACHINES['TPU v5e'].memory:.0%}"]
        model = model_flops(make_parts(config_of(key[0]), key[1])[0].task.model, config_of(key[0]))
        words = int(caption_batch(config_of(key[0]), IMAGES).token_mask[..., 1:].sum())
        useful = model.teacher_forcing(IMAGES, words)
        cells += [f"{total_flops(cost.products) / 1e12:.3f}", f"{xla / 1e12:.3f}"]
        rows.append([*cells, f"{useful / 1e12:.3f}"])
        jax.clear_caches()
    titles = ["model", "pruner", "state GB", "temporaries GB", "together GB", "of a TPU v5e"]
    return table([*titles, "TFLOP, all products", "TFLOP by XLA", "TFLOP needed"], rows)


def recipe(row):
    """Steps of a published result by (model key, step): cross-entropy, then rewards."""
    keys = {"relation_transformer": "ort", "ACORT-base": "acort", "ACORT-small": "acort_small"}
    name = keys.get(row["model"], row["model"])
    pruner = "supermask" if row["method"] == "supermask" else "none"
    epochs = 10 if row["method"].startswith("hard") else 15  # a trained model is fine-tuned
    steps = {(name, pruner): epochs * math.ceil(TRAIN_IMAGES / IMAGES)}
    if row["source"].endswith("overview"):
        steps[name, "scst"] = 10 * math.ceil(TRAIN_IMAGES / 5)
    return steps


def step_cost(key):
    """Cost of the step that `recipe` names."""
    name, kind = key
    return self_critical(name, 5, 15) if kind == "scst" else teacher_forcing(name, kind)


def papers_table():
    """Hours and cost of every table of the papers, one device."""
    from sparsecap_jax.evaluation.published import published_results

    groups = collections.defaultdict(list)
    for row in published_results():
        groups[row["source"], row["model"]].append(row)
    rows, latency = [], _LATENCY.value * 1e-6
    for group, members in groups.items():
        steps = collections.Counter()
        for member in members:
            steps.update(recipe(member))
        cells = [*group, len(members), f"{sum(steps.values()) / 1e6:.2f}"]
        for machine in MACHINES.values():
            each = {key: step_cost(key).seconds(machine, latency) for key in steps}
            hours = sum(count * each[key] for key, count in steps.items()) / 3600
            cost = hours * _SLACK.value * machine.price
            cells.append(f"{hours:.1f} / {hours * _SLACK.value:.0f} h, {cost:.0f} USD")
        rows.append(cells)
    return table(["table", "model", "runs", "million steps", *MACHINES], rows)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    parts = [
        ("# Estimates past one machine", INTRODUCTION),
        ("## One step", steps_table()),
        ("## Eight devices", devices_table()),
        ("## Against measured steps", cpu_table()),
    ]
    if _COMPILE.value:
        parts.append(("## Memory, and three counts of FLOPs", memory_table()))
    parts.append(("## The papers' tables", papers_table()))
    text = "\n".join(f"{title}\n\n{body}" for title, body in parts)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(text, encoding="utf-8")
    else:
        print(text)


INTRODUCTION = """Written by
`.venv/bin/python benchmarks/scaling.py --rates=210,50 --output=docs/results/scaling.md`;
[scaling.md](../scaling.md) explains the columns and what follows from them. **All times, hours and
costs for accelerators are estimates** from published peak rates; nothing here ran on one.
"""


if __name__ == "__main__":
    app.run(main)

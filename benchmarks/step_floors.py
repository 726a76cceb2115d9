r"""How far each step is from this machine's rates of matrix products and of memory.

    python benchmarks/step_floors.py --output=step_floors.json

Teacher forcing (dense and supermask), self-critical steps and beam search at the papers' sizes,
each in a process of its own. A floor is the sum over all matrix products of the longer of
arithmetic and traffic at the best rates of all cases, and the traffic of the optimizer's update;
model_costs.py counts them.
`products` is the time that the same products take alone, each shape timed by itself: what is above
the floor there is the library's, what is above the products is everything else. The fastest of
`--repeats` steps counts. Nothing else should run on the machine; a first call with `--repeats=1`
fills JAX's compilation cache.
"""

import json
import pathlib
import sys

import processes
from absl import app, flags
from decoding_cases import decode_options, random_model
from model_costs import (
    Dot,
    dots_of,
    fastest,
    floor_seconds,
    measured_rates,
    sizes_of,
    total_flops,
)
from paper_models import paper_config, random_regions, reward_texts
from step_cases import caption_batch, first_state, make_parts, self_critical, teacher_forcing

CASES = flags.DEFINE_list(
    "cases",
    [f"{m}:{k}" for k in ("none", "supermask", "scst", "decode") for m in ("up_down", "ort")],
    "MODEL:PRUNER, MODEL:scst or MODEL:decode.",
)
SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 4, "Timed steps of each; the fastest counts.")
ALONE = flags.DEFINE_bool("alone", True, "Time every product by itself, too.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
ONE = flags.DEFINE_string("one", None, "Used by the script itself: measure one case here.")

FLOAT = 4
IMAGES = 15
SCST_SHAPE = (5, 15)  # images, samples
DECODE_SHAPE = (50, 5)  # images, beams
CAPTION_LENGTH = 10  # tokens of a caption that is searched for


def trained_size(state):
    """Bytes that a dense Adam update reads and writes: four arrays and three."""
    import jax

    floats = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) // 2
    return 7 * FLOAT * floats


def gradient_products(name, pruner_name, images, captions, words):
    """Products of a step of teacher forcing on `words` packed words."""
    import functools

    import jax

    from sparsecap_jax.pruning.step import SparseStep

    config = paper_config(name, SCALE.value)
    objective, pruner, tx = make_parts(config, pruner_name)
    batch = caption_batch(config, images)
    tokens, mask = (leaf.repeat(captions, 1)[:, :captions] for leaf in batch[1:3])
    batch = batch._replace(tokens=tokens, token_mask=mask)
    step = SparseStep(pruner, tx, functools.partial(objective, static=words))
    state = jax.eval_shape(functools.partial(first_state, objective, pruner, tx))
    return dots_of(step, state, batch)


def search_products(model, config, images, beams, words):
    """Products of a search: images encoded once, then `words` steps."""
    import collections

    import jax
    import numpy as np

    from sparsecap_jax.models import abstract_params
    from sparsecap_jax.types import Regions

    variables, regions = (
        {"params": abstract_params(model)},
        Regions(*random_regions(images, config)),
    )

    def encode(variables, regions):
        return model.apply(variables, regions, method="encode")

    def word(variables, tokens, regions):
        context = encode(variables, regions)
        carry = model.apply(variables, context, beams, method="init_carry")
        return model.apply(variables, carry, tokens, context, method="step")[1]

    once = dots_of(encode, variables, regions)
    tokens = jax.ShapeDtypeStruct((images, beams), np.int32)
    every = collections.Counter(dots_of(word, variables, tokens, regions))
    every -= collections.Counter(once)
    return once, [dot._replace(times=dot.times * words) for dot in every.elements()]


def train_case(name, pruner_name):
    """Seconds, products and bytes of updates of teacher forcing."""
    config = paper_config(name, SCALE.value)
    case = teacher_forcing(config, IMAGES, pruner_name)
    update, words = trained_size(case.state), case.inputs[1]
    seconds, _ = time_steps(case)
    return seconds, gradient_products(name, pruner_name, IMAGES, 5, words), update


def scst_case(name):
    """Seconds, products and bytes of updates of a self-critical step."""
    config = paper_config(name, SCALE.value) | {"drop_prob_lm": 0.1, "drop_prob_src": 0.1}
    images, samples = SCST_SHAPE
    case = self_critical(config, reward_texts(config), images, samples, 0, 1)
    update, model = trained_size(case.state), case.model
    seconds, metrics = time_steps(case)
    words = round(float(metrics["length"]) * images * samples)
    _, search = search_products(model, config, images, samples, config["max_seq_length"])
    return seconds, search + gradient_products(name, "none", images, samples, words), update


def time_steps(case):
    """Seconds of the fastest step, and metrics of the last one."""
    import jax

    state, metrics = case.state, None

    def step():
        nonlocal state, metrics
        state, metrics = case.step(state, *case.inputs)
        jax.block_until_ready((state, metrics))

    step()
    return fastest(step, REPEATS.value), metrics


def decode_case(name):
    """Seconds and products of a beam search."""
    import jax

    from sparsecap_jax.decoding import decode
    from sparsecap_jax.types import Regions

    images, beams = DECODE_SHAPE
    model, params, config = random_model(name, SCALE.value, CAPTION_LENGTH)
    options = decode_options(config, beams)
    regions = jax.device_put(Regions(*random_regions(images, config)))
    search = jax.jit(lambda params, regions: decode(model, params, regions, options))
    params = jax.device_put(params)
    longest = int(jax.device_get(search(params, regions)).lengths.max())
    seconds = fastest(lambda: jax.block_until_ready(search(params, regions)), REPEATS.value)
    once, every = search_products(model, config, images, beams, longest)
    return seconds, once + every, 0


def seconds_alone(products):
    """Seconds that products take by themselves."""
    import collections
    import functools

    import jax
    import numpy as np

    counts, total = collections.Counter(), 0.0
    for dot in products:
        counts[dot.shapes] += dot.times
    rng = np.random.default_rng(0)
    for (left, right, numbers), times in counts.items():
        operands = jax.device_put([rng.random(s, np.float32) for s in (left, right)])
        product = jax.jit(functools.partial(jax.lax.dot_general, dimension_numbers=numbers))

        def call(product=product, operands=operands):
            jax.block_until_ready(product(*operands))

        call()
        total += times * fastest(call, 5)
    return total


def measure(case):
    """Print what one case takes, as JSON."""
    name, _, kind = case.partition(":")
    if case == "rates":
        print(json.dumps(measured_rates(SCALE.value)))
        return
    cases = {"scst": scst_case, "decode": decode_case}
    seconds, products, update = cases[kind](name) if kind in cases else train_case(name, kind)
    here = measured_rates(SCALE.value)
    peak, bandwidth = here["flops"], here["bandwidth"]
    row = {"case": case, "seconds": seconds, **here, "gigaflops": total_flops(products) / 1e9}
    row |= {"gigabytes": sum(dot.bytes * dot.times for dot in products) / 1e9}
    row |= {"arithmetic": total_flops(products) / peak, "updated_bytes": update}
    row |= {"products_by_size": sizes_of(products)}
    row |= {"floor": floor(row, peak, bandwidth)}
    if ALONE.value:
        row |= {"products": seconds_alone(products)}
    print(json.dumps(row))


def floor(row, flops, bandwidth):
    """Seconds of a row's floor at any rates of products and of memory."""
    products = [Dot(*sizes) for sizes in row["products_by_size"]]
    return floor_seconds(products, flops, bandwidth) + row["updated_bytes"] / bandwidth


def report(rows):
    """Print the table of the page: the best rates count, as other programs lower them."""
    flops, bandwidth = (max(row[key] for row in rows) for key in ("flops", "bandwidth"))
    print(f"\n{flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s\n")
    titles = ("model", "step", "s", "floor, s", "s / floor", "GFLOP", "products alone, s")
    print("| " + " | ".join(titles) + " | of peak | the rest, s |")
    print("|---|---" + "|--:" * len(titles) + "|")
    for row in rows:
        least, seconds = floor(row, flops, bandwidth), row["seconds"]
        cells = [*row["case"].split(":"), f"{seconds:.2f}", f"{least:.2f}"]
        cells += [f"{seconds / least:.1f}", f"{row['gigaflops']:.0f}"]
        if "products" in row:
            rate = row["gigaflops"] * 1e9 / row["products"]
            cells += [f"{row['products']:.2f}", f"{rate / flops:.0%}"]
            cells += [f"{seconds - row['products']:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if ONE.value:
        measure(ONE.value)
        return
    rows, options = [], [f"--{flag.name}={flag.value}" for flag in (SCALE, REPEATS, ALONE)]
    for case in CASES.value:
        rows.append(processes.run_json([sys.executable, __file__, f"--one={case}", *options]))
        print(json.dumps(rows[-1]), flush=True)
        if OUTPUT.value:
            pathlib.Path(OUTPUT.value).write_text(json.dumps(rows, indent=1) + "\n")
    report(rows)


if __name__ == "__main__":
    app.run(main)

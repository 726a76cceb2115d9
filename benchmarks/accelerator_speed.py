"""What the device can do, and how long steps and searches take on it; parts of accelerator.py."""

import contextlib
import functools
import math
import time
from unittest import mock

from decoding_cases import decode_options, random_model
from model_costs import model_flops
from paper_models import our_fields, paper_config, random_regions, reward_texts
from step_cases import self_critical, teacher_forcing

SECONDS = 0.7  # of a measurement, about
FLOAT = 4


def timed(call, most=200):
    """Seconds of one call, over as many as `SECONDS` hold; `call` returns arrays to wait for."""
    import jax

    def run(count):
        start = time.perf_counter()
        for _ in range(count):
            result = call()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / count

    count = min(most, max(2, math.ceil(SECONDS / max(run(1), 1e-6))))
    return run(count)


def rates(scale):
    """FLOP/s of square matrix products and bytes/s of a copy, read and written bytes together."""
    import jax
    import jax.numpy as jnp

    on_cpu = jax.devices()[0].platform == "cpu"
    size = max(64, (1024 if on_cpu else 8192) // scale)
    row = {"size": size}
    for name, dtype, precision in (
        ("float32_highest", "float32", "highest"),
        ("float32", "float32", "default"),
        ("bfloat16", "bfloat16", "default"),
    ):
        left = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        product = functools.partial(
            jnp.matmul, precision=precision, preferred_element_type=jnp.float32
        )
        compiled = jax.jit(product)
        compiled(left, left)
        row[name] = 2 * size**3 / timed(functools.partial(compiled, left, left))
    block = jnp.zeros((max(2**16, (2**24 if on_cpu else 2**28) // scale),), jnp.float32)
    copied = jax.jit(lambda x: x + 1)
    copied(block)
    row["copy"] = 2 * FLOAT * block.size / timed(functools.partial(copied, block))
    return row


@contextlib.contextmanager
def compilations():
    """Collect what is compiled ahead of time inside the block."""
    import jax

    found, compile_ = [], jax.stages.Lowered.compile

    def recorded(self, *args, **kwargs):
        found.append(compile_(self, *args, **kwargs))
        return found[-1]

    with mock.patch.object(jax.stages.Lowered, "compile", recorded):
        yield found


def gigabytes(compiled):
    """Device memory of a program: arguments, results, temporaries and code; donated ones once."""
    stats = compiled.memory_analysis()
    parts = ("argument", "output", "temp", "generated_code")
    total = sum(getattr(stats, f"{part}_size_in_bytes") for part in parts)
    return (total - stats.alias_size_in_bytes) / 1e9


def time_case(case):
    """Compile and time a `StepCase`; return the row and the metrics of the last step."""
    import jax

    state = case.state

    def step():
        nonlocal state, metrics
        state, metrics = case.step(state, *case.inputs)
        return metrics["loss"], state.step

    metrics = None
    start = time.perf_counter()
    with compilations() as found:
        jax.block_until_ready(step())
    first = time.perf_counter() - start
    seconds = timed(step, most=50)
    row = {"seconds": seconds, "compile": first - seconds, "GB": gigabytes(found[-1])}
    return row, jax.device_get(metrics)


def train(name, pruner, dtype, images, scale):
    """Teacher forcing of `images` with five captions each."""
    import jax

    config = paper_config(name, scale)
    case = teacher_forcing(config, images, pruner, compute_dtype=dtype)
    words = int(case.inputs[0].token_mask[..., 1:].sum())
    size = sum(leaf.size for leaf in jax.tree.leaves(case.state.params))
    row, metrics = time_case(case)
    # Weights are read forwards and backwards, gradients written; Adam reads four and writes three
    # arrays. Mask logits are trained in the same way.
    traffic = 10 * FLOAT * size * (2 if pruner == "supermask" else 1)
    row |= {"flops": model_flops(case.model, config).teacher_forcing(images, words)}
    rate = {"per_second": images / row["seconds"], "unit": "images"}
    return row | rate | {"bytes": traffic, "loss": float(metrics["loss"])}


def scst(name, dtype, images, samples, scale):
    """A self-critical step; captions end with probability 1/12 at every word."""
    import jax

    config = paper_config(name, scale)
    micro_batch = 75 if images * samples <= 75 else 50 * max(1, images * samples // 300)
    texts = reward_texts(config)
    buckets = 4 if scale == 1 else 1  # each compiles a gradient
    case = self_critical(config, texts, images, samples, micro_batch, buckets, compute_dtype=dtype)
    size = sum(leaf.size for leaf in jax.tree.leaves(case.state.params))
    row, metrics = time_case(case)
    words = float(metrics["length"]) * images * samples
    flops = model_flops(case.model, config).self_critical(images, words)
    # Each sampled word reads the weights, and so do both directions of the gradient.
    traffic = FLOAT * size * (10 + config["max_seq_length"])
    rate = {"per_second": images / row["seconds"], "unit": "images", "words": words}
    return row | rate | {"flops": flops, "bytes": traffic, "gap": float(metrics["log_prob_gap"])}


@functools.cache
def _random_model(name, scale):
    return random_model(name, scale, 10)


def decoding(name, dtype, images, beam, scale):
    """Greedy search (beam 1) or beam search; captions have ten tokens on average."""
    import jax

    from sparsecap_jax.decoding import decode
    from sparsecap_jax.models import make_model
    from sparsecap_jax.types import Regions

    _, params, config = _random_model(name, scale)
    model = make_model(our_fields(config) | {"compute_dtype": dtype})
    options = decode_options(config, beam)
    regions = Regions(*random_regions(images, config))
    params, regions = jax.device_put((params, regions))
    start = time.perf_counter()
    search = jax.jit(lambda params, regions: decode(model, params, regions, options))
    search = search.lower(params, regions).compile()
    compiling = time.perf_counter() - start
    lengths = jax.device_get(search(params, regions)).lengths
    seconds = timed(lambda: search(params, regions))
    row = {"seconds": seconds, "compile": compiling, "GB": gigabytes(search)}
    row |= {"per_second": images / seconds, "unit": "images", "length": float(lengths.mean())}
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    flops = model_flops(model, config).decoding(images, float(lengths.sum()))
    return row | {"flops": flops, "bytes": FLOAT * size * int(lengths.max())}

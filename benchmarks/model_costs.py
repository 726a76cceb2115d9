"""FLOPs and bytes of matrix products in JAX programs, with loops counted as often as they run.

XLA's own `cost_analysis` counts the body of a loop once, which for a recurrent captioner leaves
out most of its work. Here the jaxpr is walked instead: a scan counts as often as it is long. Loops
of unknown length (decoding) are refused: count one step of them.
"""

import collections
import math
import time
from typing import NamedTuple

ACCUMULATOR = 4  # bytes of a sum, float32


class Dot(NamedTuple):
    """One matrix product: FLOPs and bytes of one execution, how often it runs, and its shapes.

    `shapes` are those of both operands and the dimension numbers of `jax.lax.dot_general`.
    """

    flops: float
    bytes: float
    times: int
    shapes: tuple = ()


def dots(jaxpr, times=1):
    """Return every matrix product of a jaxpr, inner ones included.

    Operands and result count once each: whatever is kept in caches between products is not known.
    The branch of a `cond` with most FLOPs counts.

    Raises:
        ValueError: a `while` loop with matrix products.
    """
    products = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            products.append(_dot(equation, times))
            continue
        inner = [dots(part, 1) for part in _inner(equation.params)]
        if equation.primitive.name == "cond":
            inner = [max(inner, key=total_flops)]
        count = equation.params["length"] if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "while" and any(inner):
            raise ValueError("a while loop has matrix products: its length is not known")
        products += [
            dot._replace(times=dot.times * count * times) for part in inner for dot in part
        ]
    return products


def _dot(equation, times):
    left, right = (variable.aval for variable in equation.invars)
    out = equation.outvars[0].aval
    numbers = equation.params["dimension_numbers"]
    ((contracted, _), _) = numbers
    summed = math.prod(left.shape[axis] for axis in contracted)
    moved = sum(x.size * x.dtype.itemsize for x in (left, right)) + out.size * ACCUMULATOR
    return Dot(2.0 * out.size * summed, float(moved), times, (left.shape, right.shape, numbers))


def _inner(value):
    """Jaxprs among the parameters of an equation."""
    if hasattr(value, "jaxpr"):  # a closed jaxpr
        return [value.jaxpr]
    if hasattr(value, "eqns"):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [part for one in value for part in _inner(one)]
    return []


def total_flops(products):
    """FLOPs of products."""
    return sum(dot.flops * dot.times for dot in products)


def sizes_of(products):
    """FLOPs and bytes of one execution, and how often products of these sizes run, as lists."""
    times = collections.Counter()
    for dot in products:
        times[dot.flops, dot.bytes] += dot.times
    return [[*sizes, count] for sizes, count in times.items()]


def floor_seconds(products, flops_rate, bandwidth, latency=0.0):
    """Sum over products of the longest of arithmetic, traffic and `latency` seconds."""
    return sum(
        dot.times * max(dot.flops / flops_rate, dot.bytes / bandwidth, latency) for dot in products
    )


def dots_of(function, *args):
    """Matrix products of a function; arguments may be shapes (`jax.ShapeDtypeStruct`)."""
    import jax

    return dots(jax.make_jaxpr(function)(*args).jaxpr)


def fastest(call, repeats):
    """Seconds of the fastest of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measured_rates(scale=1):
    """FLOP/s of a square float32 product, and bytes/s of reading and writing a large array.

    The array is changed in place, as the optimizer does: new memory costs a CPU many times more.
    """
    import jax
    import jax.numpy as jnp

    size = 2048 // scale
    left = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    block = jnp.zeros((2**26 // scale,), jnp.float32)
    copied = jax.jit(lambda x: x + 1, donate_argnums=0)

    def copy():
        nonlocal block
        block = jax.block_until_ready(copied(block))

    copy()
    flops = 2 * size**3 / fastest(lambda: jax.block_until_ready(product(left, left)), 12)
    return {"flops": flops, "bandwidth": 2 * ACCUMULATOR * block.size / fastest(copy, 12)}


class ModelFlops(NamedTuple):
    """Forward FLOPs of matrix products that a model cannot do without.

    Attributes:
        image: of encoding one image.
        word: of one word of one caption, on average over the longest caption.
    """

    image: float
    word: float

    def teacher_forcing(self, images, words):
        """FLOPs of a training step: a backward pass costs twice the forward pass."""
        return 3 * (images * self.image + words * self.word)

    def self_critical(self, images, words):
        """FLOPs of sampling `words` and of their gradient; images are encoded once."""
        return 3 * images * self.image + 4 * words * self.word

    def decoding(self, images, words):
        """FLOPs of a search that extends captions, or beams, by `words` in all."""
        return images * self.image + words * self.word


def model_flops(model, config):
    """Count the FLOPs of a model of `paper_models`, on 36 regions, without computing anything."""
    import jax
    import numpy as np
    from paper_models import random_regions

    from sparsecap_jax.models import abstract_params
    from sparsecap_jax.types import Regions

    variables = {"params": abstract_params(model)}
    regions, length = Regions(*random_regions(1, config)), config["max_seq_length"]
    encode = dots_of(lambda v, r: model.apply(v, r, method="encode"), variables, regions)
    tokens = jax.ShapeDtypeStruct((1, 1, length), np.int32)
    whole = dots_of(model.apply, variables, regions, tokens)
    image = total_flops(encode)
    return ModelFlops(image, (total_flops(whole) - image) / length)

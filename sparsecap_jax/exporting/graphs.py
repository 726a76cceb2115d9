"""The parts of a captioner as functions of named arrays, which is what graph formats hold."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from sparsecap_jax.decoding.methods import find_captions
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.trees import flatten, unflatten
from sparsecap_jax.types import PyTree, Regions

Arrays = dict[str, Any]
Function = Callable[[Arrays, Arrays], Any]


class Spec(NamedTuple):
    """Shape and dtype of an array; sizes that are known only at run time are letters.

    These are `b` images, `r` regions, and `k` rows of each image.
    """

    shape: tuple[int | str, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Graph:
    """A function of weights and inputs, `(params, inputs) -> outputs`, all of them by name.

    Attributes:
        name: "encode", "step" or "greedy".
        function: pure; it runs for any sizes `b`, `r` and `k`.
        params: the weights that it reads.
        inputs: the inputs that it reads.
        outputs: what it returns.
    """

    name: str
    function: Function
    params: dict[str, Spec]
    inputs: dict[str, Spec]
    outputs: dict[str, Spec]


def make_graphs(model: Any, params: PyTree, options: DecodeOptions) -> list[Graph]:
    """Return three graphs of a captioner.

    - `encode`: `features [b, r, D]`, and of `mask [b, r]`, `boxes [b, r, 4]` and `fc [b, D]` what
      the model reads, to `context.*`, what a step reads of an image, and `carry.*`, the state of
      one row of each image;
    - `step`: `carry.*` of k rows, `context.*` and `tokens [b, k]`, int32, to the next `carry.*` and
      `log_probs [b, k, V]`;
    - `greedy`: inputs as of `encode`, to `tokens [b, T]`, int32, with PAD after the end,
      `log_probs [b, T]` of each, and `lengths [b]`, int32, EOS included.

    Args:
        model: an unbound Flax module with `encode`, `init_carry` and `step`.
        params: its params, masks applied.
        options: constraints and longest caption of the greedy search; its method is not used.
    """
    weights = {name: Spec(leaf.shape, "float32") for name, leaf in flatten(params).items()}
    regions = _regions_of(model.feature_size)
    begin = _begin(model)
    context, carry = jax.eval_shape(begin, symbolic(weights), symbolic(regions))
    template = {"carry": carry, "context": context}
    inputs = {name: _spec(leaf) for name, leaf in _named(template).items()}
    for name, spec in inputs.items():
        if name.startswith("carry."):
            inputs[name] = spec._replace(shape=(spec.shape[0], "k", *spec.shape[2:]))
    inputs["tokens"] = Spec(("b", "k"), "int32")
    step = _graph("step", _step(model, template), weights, inputs)

    def encode(params: Arrays, inputs: Arrays) -> Arrays:
        context, carry = begin(params, inputs)
        named = _named({"carry": carry, "context": context})
        return {name: leaf for name, leaf in named.items() if name in step.inputs}

    greedy = _graph("greedy", _greedy(model, options), weights, regions)
    return [_graph("encode", encode, weights, regions), step, greedy]


def symbolic(specs: Mapping[str, Spec]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return what JAX traces for arrays whose sizes are letters."""
    scope = export.SymbolicScope()
    return {
        name: jax.ShapeDtypeStruct(
            export.symbolic_shape(",".join(map(str, spec.shape)), scope=scope), spec.dtype
        )
        for name, spec in specs.items()
    }


def _regions_of(width: int) -> dict[str, Spec]:
    return {
        "features": Spec(("b", "r", width), "float32"),
        "mask": Spec(("b", "r"), "bool"),
        "boxes": Spec(("b", "r", 4), "float32"),
        "fc": Spec(("b", width), "float32"),
    }


def _regions(inputs: Arrays) -> Regions:
    """Return the inputs as a model takes them; zeros stand for those that it does not read."""
    images, regions, width = inputs["features"].shape
    unread = {
        "mask": jnp.zeros((images, regions), bool),
        "boxes": jnp.zeros((images, regions, 4), jnp.float32),
        "fc": jnp.zeros((images, width), jnp.float32),
    }
    return Regions(**{**unread, **inputs})


def _begin(model: Any) -> Function:
    """Return the function that encodes images, and starts one row of each."""

    def begin(params: Arrays, inputs: Arrays) -> tuple[PyTree, PyTree]:
        variables = {"params": unflatten(params)}
        context = model.apply(variables, _regions(inputs), train=False, method="encode")
        return context, model.apply(variables, context, 1, method="init_carry")

    return begin


def _step(model: Any, template: PyTree) -> Function:
    """Return the function that takes one step; `template` has the trees of carry and context."""

    def step(params: Arrays, inputs: Arrays) -> Arrays:
        leaves = [inputs.get(name) for name in _named(template)]
        trees = jax.tree.unflatten(jax.tree.structure(template), leaves)
        arguments = trees["carry"], inputs["tokens"], trees["context"]
        carry, log_probs = model.apply({"params": unflatten(params)}, *arguments, method="step")
        return {**_named({"carry": carry}), "log_probs": log_probs}

    return step


def _greedy(model: Any, options: DecodeOptions) -> Function:
    """Return the function that encodes images and searches greedily."""
    constraints = ("no_repeat", "no_repeat_ngram", "suppress", "suppress_unk", "bad_endings")
    constraints += ("min_length", "max_length", "bos_id", "eos_id", "pad_id", "unk_id")
    greedy = DecodeOptions("greedy", **{name: getattr(options, name) for name in constraints})

    def search(params: Arrays, inputs: Arrays) -> Arrays:
        variables = {"params": unflatten(params)}
        context = model.apply(variables, _regions(inputs), train=False, method="encode")
        factors = jnp.ones(greedy.max_length, jnp.float32)
        found = find_captions(model, variables, context, greedy, factors, None, None, None)
        return {name: getattr(found, name)[:, 0] for name in ("tokens", "log_probs", "lengths")}

    return search


def _graph(
    name: str, function: Function, params: Mapping[str, Spec], inputs: Mapping[str, Spec]
) -> Graph:
    """Return a function as a graph of the params and inputs that it reads."""
    arguments = symbolic(params), symbolic(inputs)
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    read |= {id(variable) for variable in jaxpr.jaxpr.outvars}
    names = [name for argument in arguments for name in sorted(argument)]
    pairs = zip(names, jaxpr.jaxpr.invars, strict=True)
    used = {name for name, variable in pairs if id(variable) in read}
    return Graph(
        name,
        function,
        {name: spec for name, spec in params.items() if name in used},
        {name: spec for name, spec in inputs.items() if name in used},
        {name: _spec(leaf) for name, leaf in shapes.items()},
    )


def _named(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a pytree by path, `a.b`."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _spec(leaf: Any) -> Spec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in leaf.shape)
    return Spec(shape, leaf.dtype.name)

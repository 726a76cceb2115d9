"""The parts of a captioner as functions of named arrays, which is what graph formats hold."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from sparsecap_jax.decoding.methods import find_captions
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.topk import stock_ops
from sparsecap_jax.exporting.specs import Arrays, Function, Graph, Spec
from sparsecap_jax.trees import flatten, unflatten
from sparsecap_jax.types import PyTree, Regions


def make_graphs(model: Any, params: PyTree, options: DecodeOptions) -> list[Graph]:
    """Return three graphs of a captioner.

    - `encode`: `features [b, r, D]`, and of `mask [b, r]`, `boxes [b, r, 4]` and `fc [b, D]` what
      the model reads, to `context.*`, what a step reads of an image, and `carry.*`, the state of
      one row of each image;
    - `step`: `carry.*` of k rows, `context.*` and `tokens [b, k]`, int32, to `next.*`, the carry of
      the next step, and `log_probs [b, k, V]`;
    - `greedy`: inputs as of `encode`, to `tokens [b, T]`, int32, with PAD after the end,
      `log_probs [b, T]` of each, and `lengths [b]`, int32, EOS included.

    Args:
        model: an unbound Flax module with `encode`, `init_carry` and `step`.
        params: its params, masks applied.
        options: constraints and longest caption of the greedy search; its method is not used.
    """
    weights = {name: Spec(leaf.shape, "float32") for name, leaf in flatten(params).items()}
    regions = _regions_of(model.feature_size)
    parts = _Parts(model, weights)
    context, carry = jax.eval_shape(parts.begin, symbolic(weights), symbolic(regions))
    template = {"carry": carry, "context": context}
    inputs = {name: _spec(leaf) for name, leaf in _named(template).items()}
    for name, spec in inputs.items():
        if name.startswith("carry."):
            inputs[name] = spec._replace(shape=(spec.shape[0], "k", *spec.shape[2:]))
    inputs["tokens"] = Spec(("b", "k"), "int32")
    step = _graph("step", functools.partial(parts.step, template), weights, inputs)

    def encode(params: Arrays, inputs: Arrays) -> Arrays:
        context, carry = parts.begin(params, inputs)
        named = _named({"carry": carry, "context": context})
        return {name: leaf for name, leaf in named.items() if name in step.inputs}

    greedy = functools.partial(parts.greedy, options)
    return [
        _graph("encode", encode, weights, regions),
        step,
        _graph("greedy", greedy, weights, regions),
    ]


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


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Functions of a model; weights that one of them does not read may be missing."""

    model: Any
    weights: Mapping[str, Spec]

    def begin(self, params: Arrays, inputs: Arrays) -> tuple[PyTree, PyTree]:
        """Encode images, and start one row of each: return context and carry."""
        variables = self._variables(params)
        context = self.model.apply(variables, _regions(inputs), train=False, method="encode")
        return context, self.model.apply(variables, context, 1, method="init_carry")

    def step(self, template: PyTree, params: Arrays, inputs: Arrays) -> Arrays:
        """Take one step; `template` has the trees of carry and context."""
        leaves = [inputs.get(name) for name in _named(template)]
        trees = jax.tree.unflatten(jax.tree.structure(template), leaves)
        arguments = trees["carry"], inputs["tokens"], _without_missing(trees["context"])
        carry, log_probs = self.model.apply(self._variables(params), *arguments, method="step")
        return {**_named({"next": carry}), "log_probs": log_probs}

    def greedy(self, options: DecodeOptions, params: Arrays, inputs: Arrays) -> Arrays:
        """Encode images and search greedily, with the constraints of `options`."""
        names = ["no_repeat", "no_repeat_ngram", "suppress", "suppress_unk", "bad_endings"]
        names += ["min_length", "max_length", "bos_id", "eos_id", "pad_id", "unk_id"]
        greedy = DecodeOptions("greedy", **{name: getattr(options, name) for name in names})
        context, _ = self.begin(params, inputs)
        factors = jnp.ones(greedy.max_length, jnp.float32)
        arguments = self._variables(params), context, greedy, factors
        with stock_ops():
            captions = find_captions(self.model, *arguments, None, None, None)
        return {name: getattr(captions, name)[:, 0] for name in ("tokens", "log_probs", "lengths")}

    def _variables(self, params: Arrays) -> PyTree:
        weights = self.weights.items()
        return {
            "params": unflatten(
                {n: params[n] if n in params else jnp.zeros(s.shape, s.dtype) for n, s in weights}
            )
        }


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


def _without_missing(tree: PyTree) -> PyTree:
    """Return nested dicts without the leaves that are None."""
    if not isinstance(tree, dict):
        return tree
    return {key: _without_missing(value) for key, value in tree.items() if value is not None}


def _named(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a pytree by path, `a.b`."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _spec(leaf: Any) -> Spec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in leaf.shape)
    return Spec(shape, leaf.dtype.name)

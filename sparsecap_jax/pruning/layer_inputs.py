"""Inputs of a model's layers, and their Gram matrices, for pruning from calibration batches.

Each layer is a product Y = X W of rows of inputs X `[N, I]` with a matrix W `[I, O]`:

    linear       X are the inputs, W is the kernel
    convolution  X are the patches that the window sees, one a place of the output; W is the kernel
                 `[*window, C, O]` with all axes but the last flattened. Of G groups each has its
                 own channels, its own outputs, and its own X.
    embedding    X are one-hot, W is the table: X^T X is diagonal, with the counts of the rows
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import ArrayLike, PyTree

# Of one layer, or a list of them where it runs several times: floats [..., I], Images, or ids [...]
LayerInputs = Any
# (params, batch) -> inputs of layers by the path of their kernel
Inputs = Callable[[PyTree, Any], Mapping[str, LayerInputs]]
Gram = Float[Array, "G I I"] | Float[Array, " V"]
# (module of Linen, *arguments of its call) -> inputs by the name of its leaf
Rule = Callable[..., Mapping[str, LayerInputs]]

_SPACE = "DHWXYZ"


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


@no_type_check  # JAX rebuilds pytrees with leaves that are not arrays
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Images:
    """Inputs of a convolution, and the way in which its window moves over them.

    Attributes:
        values: `[..., *space, C]`, channels last, any number of axes before.
        strides: one for each axis of space; empty for 1.
        padding: "SAME", "VALID" (with `input_dilation` neither), or pairs: zeros before and after
            each axis.
        input_dilation: as `strides`.
        kernel_dilation: as `strides`.
        groups: groups of channels, of inputs as of outputs.
    """

    values: Float[ArrayLike, "..."]
    strides: tuple[int, ...] = _static(())
    padding: str | tuple[tuple[int, int], ...] = _static("VALID")
    input_dilation: tuple[int, ...] = _static(())
    kernel_dilation: tuple[int, ...] = _static(())
    groups: int = _static(1)

    def patches(self, window: tuple[int, ...]) -> Float[Array, "N G I"]:
        """Return what the window sees at each place of the output, float32.

        I runs over the window, then over the channels of a group, as in the kernel. Memory: I
        floats a place.
        """
        space, channels = len(window), self.values.shape[-1]
        values = jnp.asarray(self.values, jnp.float32)
        values = values.reshape(-1, *values.shape[-space - 1 :])
        ones, letters = (1,) * space, _SPACE[:space]
        seen = lax.conv_general_dilated_patches(
            values,
            window,
            self.strides or ones,
            self.padding,
            self.input_dilation or ones,
            self.kernel_dilation or ones,
            (f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            precision=lax.Precision.HIGHEST,
        )
        seen = seen.reshape(-1, self.groups, channels // self.groups, seen.shape[-1] // channels)
        return seen.swapaxes(2, 3).reshape(len(seen), self.groups, -1)


def gram_of(inputs: LayerInputs, shape: tuple[int, ...]) -> Gram:
    """Return X^T X of a layer's inputs.

    Args:
        inputs: of the layer; ids below 0, or beyond the table, count nowhere.
        shape: of its kernel, `[*window, C, O]`.

    Returns:
        float32, a matrix for each group, or the counts of an embedding.

    Raises:
        ConfigError: the kernel does not take such inputs.

    Cost: O(N I^2). Memory: that of the patches, and of the result.
    """
    parts = _parts(inputs)
    for part in parts:
        _check_fit(part, shape)
    grams = [_gram(part, shape) for part in parts]
    if len({gram.shape for gram in grams}) != 1:
        raise ConfigError(f"inputs of a kernel of shape {shape} differ in their groups")
    return sum(grams[1:], grams[0])


def are_ids(inputs: LayerInputs) -> bool:
    """Return whether these are the inputs of an embedding."""
    first = _parts(inputs)[0]
    return not isinstance(first, Images) and bool(jnp.issubdtype(first.dtype, jnp.integer))


def _parts(inputs: LayerInputs) -> list[Any]:
    return jax.tree.leaves(inputs, is_leaf=lambda part: isinstance(part, Images))


def _check_fit(part: Any, shape: tuple[int, ...]) -> None:
    """Raise a ConfigError where a kernel does not take such inputs."""
    if isinstance(part, Images):
        given, groups = part.values.shape[-1], part.groups
        if len(shape) < 3 or given != shape[-2] * groups or shape[-1] % groups:
            raise ConfigError(
                f"a kernel of shape {shape} does not take images of {given} channels in {groups} "
                "groups"
            )
    elif len(shape) != 2 or not (are_ids(part) or part.shape[-1:] == shape[:1]):
        raise ConfigError(
            f"a kernel of shape {shape} does not take inputs of shape {part.shape}, {part.dtype}; "
            "those of a convolution are Images"
        )


@partial(jax.jit, static_argnames="shape")
def _gram(part: Any, shape: tuple[int, ...]) -> Gram:
    if isinstance(part, Images):
        rows = part.patches(shape[:-2])
    elif are_ids(part):
        counted = jnp.where(part < 0, shape[0], part).reshape(-1)
        return jnp.zeros(shape[0], jnp.float32).at[counted].add(1.0, mode="drop")
    else:
        rows = part.reshape(-1, 1, shape[0]).astype(jnp.float32)
    return jnp.einsum("ngi,ngj->gij", rows, rows, precision=lax.Precision.HIGHEST)


def linen_inputs(
    apply: Callable[[PyTree, Any], Any],
    kinds: tuple[type, ...] | Mapping[type, Rule] = (),
) -> Inputs:
    """Return `inputs_of` for a model of Linen: inputs of its `nn.Dense`, `nn.Conv`, `nn.Embed`.

    Layers of other classes are not seen, and those inside of `nn.scan`, `remat` or `jit` neither;
    give their inputs with a function of your own. Nor are convolutions with a mask of their own
    seen, and tables that `attend` reads as well.

    Args:
        apply: `apply(params, batch)` runs the model.
        kinds: further classes of layers with one argument `[..., I]` and a leaf `kernel` `[I, O]`,
            such as `models.layers.Linear` of this package's captioners; or a function for each,
            `(module, *arguments) -> inputs` by the names of its leaves.
    """
    run = recorded(apply, kinds)
    return lambda params, batch: run(params, batch)[1]


def recorded(
    apply: Callable[[PyTree, Any], Any], kinds: tuple[type, ...] | Mapping[type, Rule] = ()
) -> Callable[[PyTree, Any], tuple[Any, dict[str, LayerInputs]]]:
    """Return a function that returns the result of `apply`, too; see `linen_inputs`."""
    from flax import linen as nn
    from flax.core.tracers import current_trace

    more = kinds if isinstance(kinds, Mapping) else dict.fromkeys(kinds, linear_rule)
    rules = {nn.Dense: linear_rule, nn.Conv: _convolution, nn.Embed: _ids, **more}

    def run(params: PyTree, batch: Any) -> tuple[Any, dict[str, LayerInputs]]:
        seen: dict[str, list[LayerInputs]] = {}
        attended, outside = set(), current_trace()

        def record(function, args, kwargs, context):
            module = context.module
            rule = next((rule for kind, rule in rules.items() if isinstance(module, kind)), None)
            if isinstance(module, nn.Embed) and context.method_name == "attend":
                attended.add("/".join((*module.path, "embedding")))
            # Values of an inner trace would leak.
            if rule and context.method_name == "__call__" and current_trace() == outside:
                for leaf, inputs in rule(module, *args, *kwargs.values()).items():
                    seen.setdefault("/".join((*module.path, leaf)), []).append(inputs)
            return function(*args, **kwargs)

        with nn.intercept_methods(record):
            result = apply(params, batch)
        known = {name: parts for name, parts in seen.items() if name not in attended}
        return result, {n: parts[0] if len(parts) == 1 else parts for n, parts in known.items()}

    return run


def linear_rule(module: Any, inputs: ArrayLike) -> dict[str, LayerInputs]:
    """Return the inputs of a layer with a leaf `kernel` `[I, O]`."""
    is_float = jnp.issubdtype(inputs.dtype, jnp.floating)
    return {"kernel": inputs if is_float else inputs.astype(jnp.float32)}  # integers are ids


def _ids(module: Any, inputs: ArrayLike) -> dict[str, LayerInputs]:
    return {"embedding": jnp.where(inputs < 0, inputs + module.num_embeddings, inputs)}


def _convolution(module: Any, inputs: ArrayLike) -> dict[str, LayerInputs]:
    """Return the images of `nn.Conv`, padded already where zeros are not what it pads with."""
    if module.mask is not None:
        return {}
    window = module.kernel_size
    window = (window,) if isinstance(window, int) else tuple(window)

    def spread(value: Any) -> tuple[int, ...]:
        value = 1 if value is None else value
        return (value,) * len(window) if isinstance(value, int) else tuple(value)

    dilation, padding = spread(module.kernel_dilation), module.padding
    wide = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
    if isinstance(padding, int):
        padding = ((padding, padding),) * len(window)
    elif not isinstance(padding, str):
        padding = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
    elif padding == "CAUSAL":
        padding = ((wide[0] - 1, 0),)
    elif padding in ("CIRCULAR", "REFLECT"):
        edges = [(0, 0)] * (inputs.ndim - len(window) - 1)
        edges += [((size - 1) // 2, size // 2) for size in wide] + [(0, 0)]
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[padding]
        inputs, padding = jnp.pad(inputs, edges, mode=mode), "VALID"
    moves = spread(module.strides), padding, spread(module.input_dilation), dilation
    return {"kernel": Images(inputs, *moves, module.feature_group_count)}

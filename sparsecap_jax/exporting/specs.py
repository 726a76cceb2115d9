"""Descriptions of graphs: names, shapes and dtypes; free of JAX."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

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

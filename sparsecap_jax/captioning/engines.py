"""Two ways to run a captioner: compiled by XLA, or by sparse products in NumPy."""

import dataclasses
import importlib.util
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.stepper import Decoded
from sparsecap_jax.sparse import forms
from sparsecap_jax.sparse.entries import attention_weights, decode, rows_per_image
from sparsecap_jax.types import PyTree, Regions

BACKENDS = "auto", "sparse", "xla"


@runtime_checkable
class Engine(Protocol):
    """A captioner's model and weights, ready to run; results are arrays of NumPy."""

    def decode(self, regions: Regions, options: DecodeOptions, **images: Any) -> Decoded:
        """Caption a batch; `images` has `rng`, the data of a key per image, `prefix`, `required`.

        See `decoding.decode`.
        """

    def attention(self, regions: Regions, tokens: np.ndarray, bos_id: int) -> np.ndarray:
        """See `decoding.attention_weights`."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """An unbound Flax module, its params, masks applied, and the result of `decoding.prepare`."""

    model: Any
    params: PyTree
    prepared: PyTree = None

    def decode(self, regions: Regions, options: DecodeOptions, **images: Any) -> Decoded:
        """See `Engine`."""
        import jax

        from sparsecap_jax.decoding import decode

        if images.get("rng") is not None:
            images["rng"] = jax.random.wrap_key_data(images["rng"])
        members = self.model, self.params
        return jax.device_get(decode(*members, regions, options, prepared=self.prepared, **images))

    def attention(self, regions: Regions, tokens: np.ndarray, bos_id: int) -> np.ndarray:
        """See `Engine`."""
        from sparsecap_jax.decoding import attention_weights

        fed = self.model, self.params, regions, tokens
        return np.asarray(attention_weights(*fed, bos_id=bos_id))


@dataclasses.dataclass(frozen=True)
class Sparse:
    """A model of `sparsecap_jax.sparse`."""

    model: Any

    def decode(self, regions: Regions, options: DecodeOptions, **images: Any) -> Decoded:
        """See `Engine`."""
        return decode(self.model, _on_host(regions), options, **images)

    def attention(self, regions: Regions, tokens: np.ndarray, bos_id: int) -> np.ndarray:
        """See `Engine`."""
        return attention_weights(self.model, _on_host(regions), tokens, bos_id=bos_id)

    def pays(self, rows: int) -> bool:
        """Return whether a step of `rows` rows is expected to take less time than XLA's.

        One row always counts: dense models take about as long as by XLA, without compiling.
        """
        if rows == 1:
            return True
        products = self.model.products
        dense = sum(forms.cost("dense", product.size, rows) for product in products)
        return sum(product.cost(rows) for product in products) < dense


@dataclasses.dataclass
class Automatic:
    """The sparse runtime where it pays, XLA elsewhere; XLA is made when it is first needed."""

    sparse: Sparse
    make_compiled: Callable[[], Compiled]
    compiled: Compiled | None = None
    _making: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def decode(self, regions: Regions, options: DecodeOptions, **images: Any) -> Decoded:
        """See `Engine`."""
        rows = len(regions.mask) * rows_per_image(options, images.get("required"))
        return self._engine(rows).decode(regions, options, **images)

    def attention(self, regions: Regions, tokens: np.ndarray, bos_id: int) -> np.ndarray:
        """See `Engine`."""
        engine = self._engine(tokens.shape[0] * tokens.shape[1])
        return engine.attention(regions, tokens, bos_id)

    def _engine(self, rows: int) -> Engine:
        if self.sparse.pays(rows):
            return self.sparse
        with self._making:
            self.compiled = self.compiled or self.make_compiled()
        return self.compiled


def has_accelerator() -> bool:
    """Return whether JAX would find the plugin of an accelerator, without importing JAX."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu")))


def _on_host(regions: Regions) -> Regions:
    return Regions(*map(np.asarray, regions))

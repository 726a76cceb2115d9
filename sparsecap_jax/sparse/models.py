"""The models of the sparse runtime by name, and ensembles of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.array_modules.numpy_arrays import logsumexp
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.machine import cores
from sparsecap_jax.settings import build, nearest
from sparsecap_jax.sparse.layers import Weights
from sparsecap_jax.sparse.recurrent import SoftAttention, UpDown
from sparsecap_jax.sparse.transformers import RelationTransformer, Transformer
from sparsecap_jax.types import PyTree, Regions

SPARSE_MODELS = {
    "relation_transformer": RelationTransformer,
    "soft_attention": SoftAttention,
    "transformer": Transformer,
    "up_down": UpDown,
}


def make_sparse_model(
    config: Mapping[str, Any], params: PyTree, *, form: str = "", threads: int = 0
) -> Any:
    """Build the model that `config` describes and prepare its weights.

    Args:
        config: as `models.make_model` takes it.
        params: its params, masks applied.
        form: form of all matrices; by default each has its best one, see `matrices.Product`.
        threads: number of threads of a search; by default as many as there are cores.

    Raises:
        ConfigError: the runtime does not have this model, or a field is faulty.
        CheckpointError: the params do not fit the fields.
    """
    name = config["name"]
    if name not in SPARSE_MODELS:
        raise ConfigError(f"no sparse runtime for model {name!r}; {nearest(name, SPARSE_MODELS)}")
    fields = {key: value for key, value in config.items() if key != "name"}
    model = build(SPARSE_MODELS[name], fields, "model")
    weights = Weights(params, form, threads)
    model.bind(weights)
    weights.finish()
    model.products, model.threads = weights.products, threads or cores()
    return model


class SparseEnsemble:
    """The mean of the members' probabilities, see `decoding.ensemble`."""

    def __init__(self, members: Sequence[Any]):
        self._members = members
        lengths = [getattr(member, "max_seq_length", None) for member in members]
        if any(lengths):
            self.max_seq_length = min(filter(None, lengths))
        self.products = [product for member in members for product in member.products]
        self.threads = max(member.threads for member in members)

    def encode(self, regions: Regions) -> list[PyTree]:
        """Encode the images by every member."""
        return [member.encode(regions) for member in self._members]

    def init_carry(self, context: list[PyTree], rows: int) -> list[PyTree]:
        """Start every member."""
        pairs = zip(self._members, context, strict=True)
        return [member.init_carry(encoded, rows) for member, encoded in pairs]

    def step(
        self,
        carry: list[PyTree],
        tokens: np.ndarray,
        context: list[PyTree],
        attention: list[np.ndarray] | None = None,
    ) -> tuple[list[PyTree], np.ndarray]:
        """Step every member; return the log of the mean of their probabilities."""
        members = zip(self._members, carry, context, strict=True)
        steps = [model.step(state, tokens, encoded, attention) for model, state, encoded in members]
        carries, log_probs = zip(*steps, strict=True)
        mean = logsumexp(np.stack(log_probs), axis=0) - np.log(np.float32(len(steps)))
        return list(carries), np.minimum(mean, np.float32(0.0))

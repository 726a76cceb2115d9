"""Models of Linen and of the sparse runtime with the same fields and params."""

import numpy as np

from sparsecap_jax import sparse
from sparsecap_jax.models import MODELS
from sparsecap_jax.settings import fields_of


def sparse_of(module, params, **options):
    """The sparse runtime's twin of a Linen module."""
    name = next(name for name in MODELS if type(module) is MODELS[name])
    fields = {field: getattr(module, field) for field in fields_of(type(module))}
    return sparse.make_sparse_model({"name": name, **fields}, params, **options)


def random_params(shapes, density, seed=0):
    """Nested dicts of random params, matrices pruned to `density`."""
    rng = np.random.default_rng(seed)

    def draw(tree):
        if isinstance(tree, dict):
            return {key: draw(value) for key, value in tree.items()}
        fan_in = tree.shape[0] if len(tree.shape) > 1 else 10
        leaf = 3 * rng.standard_normal(tree.shape) / np.sqrt(fan_in)
        if len(tree.shape) > 1:
            leaf *= rng.random(tree.shape) < density
        return leaf.astype(np.float32)

    return draw(shapes)

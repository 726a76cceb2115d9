import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import struct

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import apply_masks, make_pruner
from sparsecap_jax.pruning.paths import by_path, select, show


def zeros(*shape):
    return jnp.zeros(shape, jnp.float32)


PARAMS = {
    "encoder": {"kernel": zeros(2, 3), "bias": zeros(3)},
    "attention": {"query": {"kernel": zeros(4, 2, 2), "bias": zeros(2, 2)}},
    "norm": {"scale": zeros(1, 4)},
    "lstm": {"kernel_ih": zeros(2, 8), "kernel_hh": zeros(2, 8), "bias_ih": zeros(8)},
    "word": {"embedding": zeros(5, 2)},
    "position": {"table": zeros(5, 2)},
}


def names(*args, **kwargs):
    return [show(path) for path in select(PARAMS, *args, **kwargs)]


def test_default_rule_takes_weight_matrices_only():
    assert names() == [
        "attention/query/kernel",
        "encoder/kernel",
        "lstm/kernel_hh",
        "lstm/kernel_ih",
        "word/embedding",
    ]


def test_include_replaces_the_rule_by_names_but_never_takes_biases():
    assert names(("position/.*", "attention/.*")) == ["attention/query/kernel", "position/table"]


def test_only_real_floats_are_prunable():
    kinds = {"a": jnp.bfloat16, "b": jnp.complex64, "c": jnp.int32, "d": jnp.float16}
    tree = {name: {"kernel": jnp.zeros((2, 2), dtype)} for name, dtype in kinds.items()}
    assert [show(path) for path in select(tree)] == ["a/kernel", "d/kernel"]


def test_exclude():
    assert names((), ("lstm/.*", "word/.*")) == ["attention/query/kernel", "encoder/kernel"]


@pytest.mark.parametrize("field", ["include", "exclude", "freeze"])
def test_a_pattern_without_a_match_is_an_error(field):
    pruner = make_pruner({"name": "mag_blind", field: ("lstm",)}, total_steps=1)
    with pytest.raises(ConfigError, match=rf"pruner.{field}: 'lstm' matches none.*lstm/kernel_hh"):
        pruner.init(jax.random.key(0), PARAMS)


def test_a_broken_pattern_is_an_error():
    pruner = make_pruner({"name": "mag_blind", "include": "("}, total_steps=1)
    with pytest.raises(ConfigError, match=r"pruner.include: '\(' is not a regular expression"):
        pruner.init(jax.random.key(0), PARAMS)


def test_nothing_to_prune_is_an_error():
    with pytest.raises(ConfigError, match="none of the parameters can be pruned"):
        select({"norm": {"scale": zeros(4)}})


def test_flax_models_of_all_kinds():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Embed(7, 4)(x)
            x = nn.MultiHeadDotProductAttention(num_heads=2)(x)
            x = nn.LayerNorm()(x)
            x = nn.RNN(nn.LSTMCell(3))(x)
            return nn.Conv(2, (3,))(x)

    params = Model().init(jax.random.key(0), jnp.zeros((1, 5), jnp.int32))["params"]
    chosen = [show(path) for path in select(params)]
    assert [name.rsplit("/", 1)[-1] for name in chosen].count("kernel") == len(chosen) - 1
    assert "Embed_0/embedding" in chosen
    # 4 attention projections, 4 + 4 LSTM kernels, 1 convolution, 1 embedding
    assert len(chosen) == 14


def test_other_containers_than_dicts():
    @struct.dataclass
    class Layer:
        w: jax.Array
        b: jax.Array

    params = [Layer(jnp.ones((2, 2), jnp.float32), zeros(2)), Layer(zeros(2, 2), zeros(2))]
    assert [show(path) for path in by_path(params)] == ["0/b", "0/w", "1/b", "1/w"]
    state = make_pruner({"name": "mag_blind"}, total_steps=1).init(jax.random.key(0), params)
    assert [show(path) for path in by_path(state.masks)] == ["0/w", "1/w"]
    masked = apply_masks(params, jax.tree.map(lambda mask: 0.5 * mask, state.masks))
    assert isinstance(masked[0], Layer)
    assert float(masked[0].w.sum()) == 2.0

"""Inputs of a captioner's layers on captions of its dataset, for pruning without training.

Images are encoded once, and their captions fed word by word, as in decoding. Padded regions and
what follows the end of a caption count nowhere. The weights of recurrent cells are bare arrays,
whose inputs each model gives here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.pipeline import TrainData
from sparsecap_jax.models import SoftAttention, UpDown
from sparsecap_jax.models.layers import Linear
from sparsecap_jax.models.relation_transformer import GeometryBias
from sparsecap_jax.pruning.layer_inputs import Inputs, LayerInputs, Rule, linear_rule, recorded
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.types import Batch, PyTree

_Cell = dict[str, Array]


def calibration_batches(
    config: ConfigDict, dataset: Dataset, tokenizer: Tokenizer, count: int
) -> list[Batch]:
    """Return the first batches of training with the config's seed.

    Raises:
        ConfigError: the dataset has fewer images than a batch.
        DataError: features are missing.
    """
    data = config.data
    batches = TrainData(
        dataset.splits["train"],
        dataset.store,
        tokenizer,
        seq_per_img=data.seq_per_img,
        max_seq_length=config.max_seq_length,
        seed=config.seed,
        batch_size=data.batch_size,
        region_buckets=data.region_buckets,
    )
    return [batches[step] for step in range(count)]


def captioner_inputs(module: nn.Module) -> Inputs:
    """Return `inputs_of(params, batch)` of a captioner, for `pruning.prune_layers`.

    Of a captioner that is no model of this package, layers of `nn.Dense`, `nn.Conv`, `nn.Embed` and
    `Linear` are seen.
    """
    if getattr(module, "remat", False):
        module = module.clone(remat=False)  # computes the same; layers inside would not be seen
    cells = next((cells for kind, cells in _CELLS.items() if isinstance(module, kind)), _no_cells)

    def inputs_of(params: PyTree, batch: Batch) -> Mapping[str, LayerInputs]:
        def encode(params: PyTree, regions: Any) -> PyTree:
            return module.apply({"params": params}, regions, method="encode")

        def step(params: PyTree, inputs: Any) -> Any:
            states = {"params": params}, *inputs
            return module.apply(*states, method="step", mutable=["intermediates"])

        context, seen = recorded(encode, _KINDS)(params, batch.regions)
        shown = jnp.asarray(batch.regions.mask)
        seen = {name: _of_regions(inputs, shown) for name, inputs in seen.items()}
        order: list[str] = []

        def take(carry: PyTree, words: tuple[Array, Array]) -> tuple[PyTree, dict]:
            tokens, real = words
            ((after, _), sown), inputs = recorded(step, _KINDS)(params, (carry, tokens, context))
            attention = sown.get("intermediates", {})
            inputs |= cells(module, params, carry, after, tokens, context, attention)
            order[:] = sorted(inputs, key=_place)
            return after, {name: _of_words(part, real, shown) for name, part in inputs.items()}

        # As in training, the last token is no input.
        tokens, real = jnp.asarray(batch.tokens)[..., :-1], jnp.asarray(batch.token_mask)[..., 1:]
        carry = module.apply({"params": params}, context, tokens.shape[1], method="init_carry")
        columns = jnp.moveaxis(tokens, -1, 0), jnp.moveaxis(real, -1, 0)
        stacked = jax.lax.scan(take, carry, columns)[1]
        for name in order:  # a layer may run on regions as on words
            both = [*_listed(seen[name]), *_listed(stacked[name])] if name in seen else None
            seen[name] = both or stacked[name]
        return seen

    return inputs_of


def _listed(inputs: LayerInputs) -> list[Any]:
    return inputs if isinstance(inputs, list) else [inputs]


def _geometry(module: GeometryBias, geometry: Any) -> dict[str, LayerInputs]:
    return {f"head_{number}/kernel": geometry for number in range(module.num_heads)}


_KINDS: dict[type, Rule] = {Linear: linear_rule, GeometryBias: _geometry}


def _of_regions(inputs: LayerInputs, shown: Bool[Array, "B R"]) -> LayerInputs:
    """Write zeros into rows of padded regions; inputs that are of whole images stay."""
    if isinstance(inputs, list):
        return [_of_regions(part, shown) for part in inputs]
    images, regions = shown.shape
    if inputs.shape[:2] == (images, regions) and inputs.ndim > 2:
        kept = shown[:, :, None]
        if inputs.ndim == 4:  # of pairs of regions
            kept = (kept & shown[:, None])[..., None]
        return jnp.where(kept, inputs, 0)
    is_flat = inputs.ndim == 2 and regions > 1 and len(inputs) == shown.size
    return jnp.where(shown.reshape(-1, 1), inputs, 0) if is_flat else inputs


def _of_words(
    inputs: LayerInputs, real: Bool[Array, "B K"], shown: Bool[Array, "B R"]
) -> LayerInputs:
    """Write zeros into rows of words that are padding, and of padded regions; ids become -1."""
    if isinstance(inputs, list):
        return [_of_words(part, real, shown) for part in inputs]
    if jnp.issubdtype(inputs.dtype, jnp.integer):
        return jnp.where(real, inputs.reshape(real.shape), -1)
    is_flat = inputs.ndim == 2 and len(inputs) == real.size
    if not is_flat and inputs.shape[:2] != real.shape:
        return _of_regions(inputs, shown)
    rows = inputs.reshape(*real.shape, -1, inputs.shape[-1])
    kept = real[..., None]
    if rows.shape[2] == shown.shape[1]:
        kept = kept & shown[:, None]
    return jnp.where(kept[..., None], rows, 0)


def _no_cells(module, params, carry, after, tokens, context, attention) -> _Cell:
    return {}


def _up_down(module: UpDown, params, carry, after, tokens, context, attention) -> _Cell:
    words = jax.nn.relu(params["embed"]["embedding"][tokens])
    image = jnp.broadcast_to(context["fc"][:, None], carry["h_lang"].shape)
    (weights,) = attention["attention"]["attention"]
    attended = weights @ context["regions"]
    return {
        "att_lstm/kernel_ih": jnp.concatenate([carry["h_lang"], image, words], -1),
        "att_lstm/kernel_hh": carry["h_att"],
        "lang_lstm/kernel_ih": jnp.concatenate([attended, after["h_att"]], -1),
        "lang_lstm/kernel_hh": carry["h_lang"],
    }


def _soft_attention(module: SoftAttention, params, carry, after, tokens, context, _) -> _Cell:
    words, state = params["embed"]["embedding"][tokens], carry["h"]
    inputs = jnp.concatenate([words, carry["attended"]], -1)
    if module.cell == "lstm":
        return {"lstm/kernel_ih": inputs, "lstm/kernel_hh": state}
    gates = params["gru_gates"]
    both = inputs @ gates["kernel_ih"] + gates["bias"] + state @ gates["kernel_hh"]
    reset = jax.nn.sigmoid(both)[..., : module.rnn_size]
    parts = {"gru_gates/kernel_ih": inputs, "gru_gates/kernel_hh": state}
    return {**parts, "gru_candidate/kernel_ih": inputs, "gru_candidate/kernel_hh": reset * state}


_CELLS: dict[type, Callable[..., _Cell]] = {UpDown: _up_down, SoftAttention: _soft_attention}
# Layers of a step that run before all others, and after them.
_FIRST = ("embed/", "att_lstm/", "lstm/", "gru_gates/", "gru_candidate/")
_LAST = ("lang_lstm/", "logit")


def _place(name: str) -> int:
    """Return the place of a layer in a step; others than the known ones are in between."""
    known = (*_FIRST, "", *_LAST)
    starts = [place for place, start in enumerate(known) if start and name.startswith(start)]
    return starts[0] if starts else len(_FIRST)

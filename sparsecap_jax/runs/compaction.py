"""Pruned captioners without their dead units: smaller dense models of the same outputs.

Each model's units are described once, by the leaves that make and read them; `pruning.compact` does
the rest. Layers that one field of the model sizes keep equally many units.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models import SoftAttention, Transformer, UpDown
from sparsecap_jax.pruning.compact import Compacted, compact
from sparsecap_jax.pruning.units import Axis, Units
from sparsecap_jax.runs.directory import LoadedRun
from sparsecap_jax.types import PyTree

_GATES = Axis(-1, blocks=4)


def compact_run(run: LoadedRun) -> LoadedRun:
    """Return a finished run without its dead units, to be saved, captioned with or trained further.

    Raises:
        ConfigError: a model of another kind.
    """
    module, small = compact_captioner(run.model, run.params, run.masks)
    config = run.config.copy_and_resolve_references()
    config.model.update(small.widths)
    params, masks = jax.device_get((small.params, small.masks))
    return dataclasses.replace(run, config=config, model=module, params=params, masks=masks)


def compact_captioner(
    module: nn.Module, params: PyTree, masks: PyTree | None = None
) -> tuple[nn.Module, Compacted]:
    """Remove the dead units of a pruned captioner; log-probs stay the same but for rounding.

    Units are those of LSTMs and GRUs, of embeddings, of attention's hidden layer, and inside the
    feed-forward sublayers; the width of a transformer's residual stream stays.

    Args:
        module: a captioner of this package.
        params: its finished weights, or any with their `masks`.
        masks: binary masks.

    Returns:
        The module with the smaller widths, and its parameters.

    Raises:
        ConfigError: a model of another kind.
    """
    chain = next((chain(module) for kind, chain in _CHAINS.items() if isinstance(module, kind)), [])
    if not chain:
        raise ConfigError(f"compact: units of {type(module).__name__} are not known")
    small = compact(params, chain, masks)
    widths: dict[str, Any] = {**small.widths}
    return module.clone(**widths), small


def _up_down(module: UpDown) -> list[Units]:
    rnn, att, lang = module.rnn_size, "att_lstm/kernel_ih", "lang_lstm/kernel_ih"
    layers = [f"logit_{number}" for number in range(module.logit_layers)]
    size: dict[str, Any] = {"width": "rnn_size"}
    relu = jax.nn.relu
    fc, word = {att: Axis(-2, rnn)}, {att: Axis(-2, 2 * rnn)}
    regions: dict[str, int | Axis] = {"ctx2att/kernel": -2, lang: Axis(-2)}
    states: dict[str, int | Axis]
    states = {"att_lstm/kernel_hh": -2, "attention/h2att/kernel": -2, lang: Axis(-2, rnn)}
    spoken: dict[str, int | Axis]
    spoken = {"lang_lstm/kernel_hh": -2, att: Axis(-2), f"{layers[0]}/kernel": -2}
    queries = _linear("ctx2att") | _linear("attention/h2att")
    return [
        Units(_linear("fc_embed"), fc, relu, "att_lstm/bias_ih", **size),
        # No bias: padded regions are 0, whatever the bias of the embedding.
        Units(_linear("region_embed"), regions, relu, **size),
        Units(_lstm("att_lstm"), states, **size),
        Units(_lstm("lang_lstm"), spoken, **size),
        *(
            Units(_linear(one), {f"{two}/kernel": -2}, relu, f"{two}/bias", **size)
            for one, two in itertools.pairwise(layers)
        ),
        Units(queries, {"attention/alpha/kernel": -2}, width="attention_size"),
        Units({"embed/embedding": -1}, word, relu, width="embed_size"),
    ]


def _soft_attention(module: SoftAttention) -> list[Units]:
    state = {"query/kernel": -2, "logit/kernel": -2}
    makes: dict[str, int | Axis] = {}
    if module.cell == "lstm":
        cells = ["lstm"]
        makes |= dict.fromkeys(("lstm/kernel_hh", "lstm/kernel_ih", "lstm/bias"), _GATES)
    else:
        cells = ["gru_gates", "gru_candidate"]
        for cell, axis in zip(cells, (Axis(-1, blocks=2), Axis(-1)), strict=True):
            makes |= {f"{cell}/{leaf}": axis for leaf in ("kernel_hh", "kernel_ih", "bias")}
    reads = state | {f"{cell}/kernel_hh": -2 for cell in cells}
    words = {f"{cell}/kernel_ih": Axis(-2) for cell in cells}
    seen = {f"{cell}/kernel_ih": Axis(-2, module.embed_size) for cell in cells}
    queries = {"keys/kernel": -1, "query/kernel": -1}
    return [
        Units(makes | {"init_state/kernel": -1}, reads, width="rnn_size"),
        Units({"values/kernel": -1}, seen, _same, width="attention_size"),
        Units(queries, {"score/kernel": -2}, width="attention_size"),
        Units({"embed/embedding": -1}, words, _same, width="embed_size"),
    ]


def _transformer(module: Transformer) -> list[Units]:
    chain = []
    for side in ("encoder", "decoder"):
        for number in sorted(set(module.order(side))):
            inner = f"{side}_layers_{number}/feed_forward"
            reads, bias = {f"{inner}/w_2/kernel": -2}, f"{inner}/w_2/bias"
            chain.append(Units(_linear(f"{inner}/w_1"), reads, jax.nn.relu, bias, "ff_size"))
    return chain


def _linear(name: str) -> dict[str, int]:
    return {f"{name}/kernel": -1, f"{name}/bias": -1}


def _lstm(name: str) -> dict[str, Axis]:
    leaves = ("kernel_hh", "kernel_ih", "bias_ih", "bias_hh")
    return {f"{name}/{leaf}": _GATES for leaf in leaves}


def _same(values):
    return values


_CHAINS: dict[type, Callable[[Any], list[Units]]] = {
    UpDown: _up_down,
    SoftAttention: _soft_attention,
    Transformer: _transformer,  # the Object Relation Transformer, too
}

__all__ = ["compact_captioner", "compact_run"]

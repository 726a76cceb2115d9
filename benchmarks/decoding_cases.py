"""Models of the papers with random weights that end captions as trained ones do, for benchmarks."""

import numpy as np
from paper_models import is_recurrent, our_fields, paper_config, random_regions

RECURRENT_NOISE, TRANSFORMER_NOISE = 80.0, 0.5


def random_model(name, scale, caption_length):
    """A model of the paper with random weights: (model, params, the reference's config)."""
    import jax

    from sparsecap_jax.models import init_params, make_model

    config = paper_config(name, scale)
    model = make_model(our_fields(config))
    params = init_params(model, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.array(leaf), params)
    if caption_length:
        add_clock(params, config)
        set_mean_length(model, params, config, caption_length)
    return model, params, config


def add_clock(params, config):
    """Make something in the model grow with the position, and let the logit of EOS follow it.

    The rest of the column of EOS is noise, larger than those of other tokens, so that lengths vary.
    """
    eos = logit_layer(params)["kernel"][:, config["eos_token_id"]]
    eos *= RECURRENT_NOISE if is_recurrent(config) else TRANSFORMER_NOISE
    if is_recurrent(config):
        # Unit 0 of the last LSTM adds up 0.1 at each step.
        lstm = params["lang_lstm" if "lang_lstm" in params else "lstm"]
        for gate, bias in enumerate((10.0, 10.0, 0.1, 10.0)):
            for leaf in lstm.values():
                leaf[..., gate * len(eos)] = 0
            lstm["bias_ih" if "bias_ih" in lstm else "bias"][gate * len(eos)] = bias
        eos[0] = 20
        return
    # Slow sinusoids of the position, which nothing else is added to.
    slow = np.arange(len(eos) // 4, len(eos) // 3) // 2 * 2
    params["tgt_embed"]["embedding"][:, slow] = 0
    for layer in (value for key, value in params.items() if key.startswith("decoder_layers")):
        for part in ("self_attn", "cross_attn"):
            layer[part]["out"]["kernel"][:, slow] = layer[part]["out"]["bias"][slow] = 0
        layer["feed_forward"]["w_2"]["kernel"][:, slow] = 0
        layer["feed_forward"]["w_2"]["bias"][slow] = 0
    eos[slow] = 2 / np.sqrt(len(slow))


def logit_layer(params):
    """The layer that gives the logits."""
    return next(params[name] for name in ("logit_0", "logit", "logits") if name in params)


def decode_options(config, beam):
    """Greedy search (beam 1) or beam search, up to the model's longest caption."""
    from sparsecap_jax.decoding import DecodeOptions

    ids = {"bos_id": config["bos_token_id"], "eos_id": config["eos_token_id"]}
    method = {"method": "greedy"} if beam == 1 else {"method": "beam", "beam_size": beam}
    return DecodeOptions(max_length=config["max_seq_length"], **method, **ids)


def set_mean_length(model, params, config, target):
    """Find the bias of EOS with which greedy captions have `target` tokens on average."""
    from sparsecap_jax.decoding import decode
    from sparsecap_jax.types import Regions

    logits, options = logit_layer(params), decode_options(config, 1)
    regions = Regions(*random_regions(10, config))
    low, high = -500.0, 500.0
    for _ in range(12):
        middle = (low + high) / 2
        logits["bias"][config["eos_token_id"]] = middle
        decoded = decode(model, params, regions, options)
        low, high = (low, middle) if np.mean(decoded.lengths) < target else (middle, high)

"""The papers' models as configs of the PyTorch reference, and inputs like those of COCO."""

import collections

import numpy as np

# The fields of sparsecap_jax.types.Regions, for a Python without JAX.
Regions = collections.namedtuple("Regions", ("features", "mask", "boxes", "fc"))

MAX_LENGTH = 18
IDS = {"pad_token_id": 0, "unk_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
LENGTHS = (9, 18)  # tokens of a caption, BOS and EOS included
TRANSFORMER = {"num_layers": 6, "num_heads": 8, "d_model": 512, "dim_feedforward": 2048}
SHARED = (0, 0, 0, 1, 1, 1)
ACORT = {
    "share_att_encoder": "kv",
    "share_att_decoder": "kv",
    "share_layer_encoder": SHARED,
    "share_layer_decoder": SHARED,
}
RADIX = {"vocab_size": 771, "max_seq_length": 26, "bos_token_id": 769, "eos_token_id": 770}
FIELDS = {
    "up_down": {
        "caption_model": "up_down_lstm",
        **{"input_encoding_size": 1000, "rnn_size": 1000, "att_hid_size": 512},
        **{"drop_prob_lm": 0.5, "logit_layers": 1},
    },
    "soft_attention": {
        "caption_model": "soft_attention",  # no model of the reference, see torch_soft_attention
        **{"input_encoding_size": 256, "rnn_size": 512, "att_hid_size": 512},
        **{"drop_prob_lm": 0.35, "drop_prob_att": 0.1},
    },
    "transformer": {"caption_model": "transformer", **TRANSFORMER},
    "ort": {"caption_model": "relation_transformer", **TRANSFORMER},
    "acort": {"caption_model": "relation_transformer", **TRANSFORMER, **ACORT, **RADIX},
}


def paper_config(name, scale=1, pruned=False):
    """The reference's config of a model of the paper, all sizes divided by `scale`.

    Args:
        name: a key of FIELDS.
        scale: divisor of all widths.
        pruned: whether for its masked class, with supermasks and the dropout of pruned models.
    """
    config = {"vocab_size": 10_000, "max_seq_length": MAX_LENGTH, **IDS, "version": "0.6.0"}
    config |= {"att_feat_size": 2048, "fc_feat_size": 2048}
    config |= dict.fromkeys(ACORT)
    config |= {"drop_prob_src": 0.5, "no_box_trigonometric_embedding": False}
    config |= FIELDS[name]
    for key in ("vocab_size", "att_feat_size", "fc_feat_size", "input_encoding_size", "rnn_size"):
        if key in config and name != "acort":
            config[key] //= scale
    for key in ("att_hid_size", "d_model", "dim_feedforward"):
        if key in config:
            config[key] //= scale
    if name == "acort":
        config |= {"att_feat_size": 2048 // scale}
    if pruned:
        config["caption_model"] += "_prune"
        config |= {"prune_type": "supermask", "prune_supermask_init": 5.0}
        config |= {"prune_mask_freeze_scope": "", "drop_prob_lm": 0.1, "drop_prob_src": 0.1}
    return config


def is_recurrent(config):
    """Whether a config of `paper_config` describes an LSTM, which has a recipe of its own."""
    return config["caption_model"].startswith(("up_down", "soft_attention"))


def our_fields(config):
    """What `sparsecap_jax.models.make_model` takes for a config of `paper_config`."""
    if config["caption_model"] != "soft_attention":
        from sparsecap_jax.interop.reference import model_config

        return model_config(config)
    return {
        "name": "soft_attention",
        "vocab_size": config["vocab_size"],
        "feature_size": config["att_feat_size"],
        "embed_size": config["input_encoding_size"],
        "rnn_size": config["rnn_size"],
        "attention_size": config["att_hid_size"],
        "dropout": config["drop_prob_lm"],
        "attention_dropout": config["drop_prob_att"],
    }


def random_regions(batch, config):
    """Regions like those of COCO: 36 of them, features positive and sparse."""
    rng = np.random.default_rng(batch)
    size = config["att_feat_size"]
    features = np.maximum(rng.normal(size=(batch, 36, size)) - 0.5, 0).astype(np.float32)
    corners = np.sort(rng.random((batch, 36, 2, 2)), axis=2).reshape(batch, 36, 4)
    mask = np.ones((batch, 36), bool)
    return Regions(features, mask, corners.astype(np.float32), features.mean(axis=1))


def random_captions(batch, captions, config):
    """Tokens and mask `[batch, captions, T]`, lengths drawn evenly from LENGTHS (of 18)."""
    rng = np.random.default_rng(batch)
    length = config["max_seq_length"]
    low, high = (n * length // MAX_LENGTH for n in LENGTHS)
    lengths = rng.integers(low, high + 1, (batch, captions, 1))
    mask = np.arange(length) < lengths
    tokens = rng.integers(4, config["vocab_size"] - 4, (batch, captions, length))
    tokens[..., 0] = config["bos_token_id"]
    np.put_along_axis(tokens, lengths - 1, config["eos_token_id"], axis=-1)
    return np.where(mask, tokens, config["pad_token_id"]).astype(np.int32), mask


def reward_texts(config, images=2000):
    """Five captions for each of `images`, words `wi` as frequent as in real text (Zipf).

    Captions of one image share words, so that rewards differ from 0.
    """
    rng = np.random.default_rng(0)
    words = config["vocab_size"] - len(IDS)
    texts = []
    for _ in range(images):
        pool = np.minimum(rng.zipf(1.3, 20) % words, words - 1) + len(IDS)
        lengths = rng.integers(8, 16, 5)
        texts.append([" ".join(f"w{i}" for i in rng.choice(pool, length)) for length in lengths])
    return texts

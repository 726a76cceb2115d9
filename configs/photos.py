r"""Captioners of photos, small ones: EfficientNet-Lite0 features, few photos, much text.

    python launch/train.py --config=configs/photos.py --workdir=runs/photos_dense
    python launch/train.py --config=configs/photos.py:supermask --workdir=runs/photos_sparse \
        --config.train.init_from=runs/photos_dense

docs/photos.md tells how the dataset is made from photos and captions. Words: `ort` for the
Object Relation Transformer instead of Up-Down, and the names of pruners; `key=value` sets fields
of the pruner.
"""

from ml_collections import ConfigDict

from sparsecap_jax.recipes import make_config

OPTIMIZER = {
    **{"learning_rate": 2e-3, "learning_rate_min": 5e-5, "beta": 0.999, "epsilon": 1e-8},
    **{"clip": "norm", "clip_at": 1.0, "mask_epsilon": 3e-4},
}
UP_DOWN = {"embed_size": 256, "rnn_size": 256, "attention_size": 128, "dropout": 0.3}
ORT = {
    **{"d_model": 256, "ff_size": 512, "num_layers": 3, "num_heads": 8},
    **{"source_dropout": 0.2, "dropout": 0.2},
}


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` holds the words and values above."""
    words = arg.split(",")
    ort = "ort" in words
    config = make_config(
        ",".join(word for word in words if word != "ort"),
        "relation_transformer" if ort else "up_down",
        fields=ORT if ort else UP_DOWN,
        pruned={},
        tiny={},
        optimizer=OPTIMIZER,
        weight_scale=1.5 if ort else 0.5,
        tokenizer={"name": "word"},
    )
    with config.unlocked():
        config.data.update(name="imagined", dir="data/flickr8k_mini", feature_size=1280)
        config.data.update(region_buckets=(14,), batch_size=32, seq_per_img=2)
        config.data.mixture = "flickr8k_1k=20,coco_photos=20,flickr8k_text=10,coco=1"
        config.tokenizer.vocab_size = 2000
        config.train.update(steps=6000, eval_every=500, steps_per_call=10, log_every=100)
        config.eval.update(beam_size_val=3, beam_size_test=3, length_penalty="avg_0")
    return config

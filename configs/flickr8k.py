r"""Captioners of photos, trained on Flickr8k and COCO photos (docs/results/flickr8k.md).

    sparsecap train --config=configs/flickr8k.py --workdir=runs/flickr8k
    sparsecap train --config=configs/flickr8k.py:supermask --workdir=runs/flickr8k_95
    sparsecap train --config=configs/flickr8k.py:finetune,mask_freeze \
        --config.train.init_from=runs/flickr8k_95 --workdir=runs/flickr8k_95_finetuned

docs/photos.md describes how `data/flickr8k_coco` is made. Words: `ort` for the Object Relation
Transformer instead of Up-Down, `finetune` for a last stage on Flickr8k alone, and the names of
pruners, with `key=value` for their fields.
"""

from ml_collections import ConfigDict

from sparsecap_jax.runs.recipes import make_config

OPTIMIZER = {
    **{"learning_rate": 2e-3, "learning_rate_min": 2e-5, "beta": 0.999, "epsilon": 1e-8},
    **{"clip": "norm", "clip_at": 1.0},
}
UP_DOWN_OPTIMIZER = {**OPTIMIZER, "mask_epsilon": 1e-4}
ORT_OPTIMIZER = {**OPTIMIZER, "learning_rate": 1e-3, "mask_epsilon": 3e-4}
# 4.1 million weights with 3,000 words: 5% of them make a file of 0.55 MB.
UP_DOWN = {"embed_size": 256, "rnn_size": 256, "attention_size": 128, "dropout": 0.3}
# Few weights overfit less: with 0.3 they lose 1 to 2 CIDEr (docs/results/flickr8k.md).
UP_DOWN_PRUNED = {"dropout": 0.1}
ORT = {
    **{"d_model": 256, "ff_size": 512, "num_layers": 3, "num_heads": 8},
    **{"source_dropout": 0.2, "dropout": 0.2},
}


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` holds the words and values above."""
    words = arg.split(",")
    ort = "ort" in words
    config = make_config(
        ",".join(word for word in words if word not in ("ort", "finetune")),
        "relation_transformer" if ort else "up_down",
        fields=ORT if ort else UP_DOWN,
        pruned={} if ort else UP_DOWN_PRUNED,
        tiny={},
        optimizer=ORT_OPTIMIZER if ort else UP_DOWN_OPTIMIZER,
        weight_scale=2.5,  # COCO's 0.5 leaves 16% of the weights after 4,000 steps
        tokenizer={"name": "word"},
    )
    with config.unlocked():
        config.data.update(name="imagined", dir="data/flickr8k_coco", feature_size=1280)
        config.data.update(region_buckets=(14,), seq_per_img=5)
        config.data.batch_size = 32 if "supermask" in words else 16
        config.data.cache_dtype = "float16"  # as the features are stored
        config.tokenizer.vocab_size = 3000
        config.train.update(steps=8000, eval_every=2000, steps_per_call=10, log_every=100)
        config.eval.update(beam_size_val=3, beam_size_test=3, length_penalty="avg_0")
        if "finetune" in words:
            config.data.mixture = "flickr8k=1"
            config.train.update(steps=1500, eval_every=500)
            config.optimizer.learning_rate = 1e-3
    return config

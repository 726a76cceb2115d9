"""Run directories of tiny captioners with random weights, and features for them."""

import jax
import numpy as np

from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.runs.config import default_config, model_config, model_section
from sparsecap_jax.runs.directory import LoadedRun, save_run
from sparsecap_jax.tokenizers import TOKENIZERS, make_tokenizer

WIDTH, BUCKETS, LENGTH = 6, (4, 8), 7
WORDS = ["a big dog runs home", "the small cat sleeps", "two red birds and one ball"] * 4
SIZES = {
    "up_down": {"embed_size": 8, "rnn_size": 16, "attention_size": 4},
    "relation_transformer": {"d_model": 8, "ff_size": 8, "num_layers": 1, "num_heads": 2},
}


def make_run(directory, model="up_down", seed=0, words=WORDS, feature_size=WIDTH):
    """Write a run; with `no_repeat_ngram=1` captions differ from image to image, and in length."""
    config = default_config(model=model)
    with config.unlocked():
        config.model = model_section(model, **SIZES[model])
    config.max_seq_length = LENGTH
    config.data.feature_size = feature_size
    config.data.region_buckets = BUCKETS
    TOKENIZERS["word"].train(words, directory / "tokenizer", vocab_size=40)
    tokenizer = make_tokenizer(config.tokenizer, directory / "tokenizer")
    module = make_model(model_config(config, tokenizer.vocab_size))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: np.float32(rng.normal(size=leaf.shape)), abstract_params(module)
    )
    bias = params["logit_0" if "logit_0" in params else "logits"]["bias"]
    bias[:] = 0
    bias[[tokenizer.pad_id, tokenizer.bos_id]] = -50
    save_run(directory, LoadedRun(config, tokenizer, module, params, {}))
    return directory


def image_arrays(count, width=WIDTH):
    """Features `[R, D]` and boxes `[R, 4]` of images with 1 to 8 regions."""
    rng = np.random.default_rng(1)
    regions = rng.integers(1, max(BUCKETS) + 1, count)
    features = [rng.normal(size=(number, width)).astype(np.float32) for number in regions]
    corners = [np.sort(rng.random((number, 2, 2)), axis=1).reshape(-1, 4) for number in regions]
    return features, [one.astype(np.float32) for one in corners]


def write_features(directory, count):
    """A folder of features; image ids are 100, 101, ..."""
    features, boxes = image_arrays(count)
    for name, arrays in (("cocobu_att", features), ("cocobu_box_relative", boxes)):
        (directory / name).mkdir(parents=True)
        for number, array in enumerate(arrays):
            np.save(directory / name / f"{100 + number}.npy", array)
    return directory

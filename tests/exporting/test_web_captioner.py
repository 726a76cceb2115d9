"""Captioners in JavaScript, in headless Chromium: tokens and attention are those of Python."""

import chromium
import numpy as np
import pytest
from captioner_runs import WORDS, image_arrays

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.exporting.web_captioner import pack_captioner
from sparsecap_jax.files import write_json
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.runs.config import default_config, model_config, model_section
from sparsecap_jax.runs.directory import LoadedRun, save_run
from sparsecap_jax.runs.finished import load_finished
from sparsecap_jax.runs.published import find
from sparsecap_jax.tokenizers import TOKENIZERS, make_tokenizer

IMAGES = 200
RECURRENT = {"embed_size": 8, "rnn_size": 16, "attention_size": 6}
LAYERS = {"d_model": 8, "ff_size": 12, "num_layers": 2, "num_heads": 2}
SHARED = {"share_layer_encoder": (0, 0), "share_layer_decoder": (0, 1, 0)}
# Model, its fields, tokenizer, search.
FAMILIES = {
    "up_down": ("up_down", RECURRENT, "word", {"no_repeat_ngram": 1}),
    "up_down_deep": ("up_down", {**RECURRENT, "logit_layers": 3}, "char", {"beam_size": 4}),
    "soft_lstm": ("soft_attention", RECURRENT, "unigram", {"length_penalty": "wu_1.5"}),
    "soft_gru": ("soft_attention", {**RECURRENT, "cell": "gru"}, "word", {"temperature": 2.0}),
    "transformer": ("transformer", LAYERS, "bpe", {"no_repeat": True, "min_length": 3}),
    "shared_kv": (
        "transformer",
        {**LAYERS, **SHARED, "share_attention_encoder": "kv", "share_attention_decoder": "kv"},
        "radix",
        {"length_penalty": "avg_0", "no_repeat_ngram": 1},
    ),
    "shared_qk": (
        "relation_transformer",
        {**LAYERS, "share_attention_encoder": "qk", "share_attention_decoder": "qk"},
        "word",
        {"search": "greedy", "no_repeat_ngram": 2, "suppress": ["dog"]},
    ),
    "relation_plain": (
        "relation_transformer",
        {**LAYERS, "box_embedding": "plain"},
        "word",
        {"suppress_unk": True, "bad_endings": ["a", "the"], "beam_size": 3},
    ),
}


def make_run(folder, model, fields, tokenizer_name, density=0.4):
    """A finished run with random weights, matrices pruned to `density`."""
    config = default_config(model=model)
    with config.unlocked():
        config.model = model_section(model, **fields)
        config.tokenizer.name = tokenizer_name
        if tokenizer_name == "radix":
            config.tokenizer.radix_base = 5
    config.max_seq_length, config.data.feature_size = 9, 6
    size = {"char": 24, "unigram": 36, "bpe": 40}.get(tokenizer_name, 40)
    options = {"radix_base": 5} if tokenizer_name == "radix" else {}
    TOKENIZERS[tokenizer_name].train(WORDS, folder / "tokenizer", vocab_size=size, **options)
    tokenizer = make_tokenizer(config.tokenizer, folder / "tokenizer")
    module, rng = make_model(model_config(config, tokenizer.vocab_size)), np.random.default_rng(3)

    def draw(tree):
        if isinstance(tree, dict):
            return {key: draw(value) for key, value in tree.items()}
        leaf = 1.5 * rng.normal(size=tree.shape)
        return np.float32(leaf * (rng.random(tree.shape) < density if leaf.ndim == 2 else 0.3))

    save_run(folder, LoadedRun(config, tokenizer, module, draw(abstract_params(module)), {}))
    return folder


def images_of(count):
    features, boxes = image_arrays(count)
    return [(f, b, f.mean(axis=0)) for f, b in zip(features, boxes, strict=True)]


def check(driver, folder, name, run, images, **search):
    """Compare all captions, the text of the best ones, and where it looked for each word."""
    from web_pages import captions_in_page

    (folder / f"{name}.bin").write_bytes(pack_captioner(load_finished(run)).content)
    found = captions_in_page(driver, folder, f"{name}.bin", images)
    columns = [list(column) for column in zip(*images, strict=True)]
    expected = Captioner.load(run, backend="sparse").candidates(*columns, attention=True, **search)
    tokens = [[tuple(one["tokens"]) for one in page["captions"]] for page in found]
    assert tokens == [[one.tokens for one in captions] for captions in expected]
    texts = [page["captions"][0]["text"] for page in found]
    assert texts == [captions[0].text for captions in expected]
    for page, (best, *_) in zip(found, expected, strict=True):
        weights = np.reshape(page["weights"], best.attention.shape)
        np.testing.assert_allclose(weights, best.attention, atol=2e-4)
        assert page["captions"][0]["score"] == pytest.approx(best.score, abs=1e-3)
    return [captions[0] for captions in expected]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A driver at a folder with the files that all pages share, and the folder."""
    if chromium.missing():
        pytest.skip(chromium.missing())
    from web_pages import served

    from sparsecap_jax.exporting.web import page_files

    folder = tmp_path_factory.mktemp("page")
    (folder / "examples").mkdir()
    for name, content in page_files().items():
        (folder / name).write_bytes(content)
    with served(folder) as address, chromium.browser() as driver:
        driver.get(f"{address}licences.txt")
        yield driver, folder


@pytest.mark.parametrize("name", FAMILIES)
def test_families(page, tmp_path, name):
    model, fields, tokenizer, search = FAMILIES[name]
    run = make_run(tmp_path, model, fields, tokenizer)
    write_json(run / "search.json", search)
    captions = check(*page, name, run, images_of(IMAGES), **search)
    # It was no constant: the images decide what is said, or how surely.
    assert len({(one.tokens, round(one.score, 1)) for one in captions}) > IMAGES / 10


@pytest.mark.parametrize("changes", [{}, {"search": "greedy"}])
def test_the_captioner_of_the_package(page, example_images, tmp_path, changes):
    run, search = find("flickr8k-mini"), load_finished(find("flickr8k-mini")).search
    if changes:
        import shutil

        run = shutil.copytree(run, tmp_path / "greedy")
        beams = ("beam_size", "length_penalty")
        search = {**{k: v for k, v in search.items() if k not in beams}, **changes}
        write_json(run / "search.json", search)
    captions = check(*page, "flickr8k", run, example_images, **search)
    assert len({one.tokens for one in captions}) > 30


@pytest.fixture(scope="module")
def example_images():
    """Regions of made-up images: windows of three photos, mixed."""
    from sparsecap_jax.photos.extractors import open_for, remake_extractor
    from sparsecap_jax.photos.images import EXAMPLES, list_photos

    extractor = remake_extractor(load_finished(find("flickr8k-mini")).extractor)
    photos = extractor([open_for(extractor, path) for path in list_photos(EXAMPLES)])
    windows = np.concatenate([photo.features for photo in photos])
    rng = np.random.default_rng(0)

    def mixed():
        features = windows[rng.permutation(len(windows))[:14]]
        features = features * rng.gamma(2, 0.6, windows.shape[1])
        features = features[:, rng.permutation(windows.shape[1])]
        return np.float32(features), photos[0].boxes, np.float32(features.mean(axis=0))

    return [mixed() for _ in range(IMAGES)]


@pytest.mark.parametrize(
    ("search", "field"),
    [
        ({"search": "sample"}, "search"),
        ({"search": "diverse_beam", "beam_size": 4}, "search"),
        ({"required": ["dog"]}, "required"),
        ({"prefix": "a"}, "prefix"),
        ({"consensus": 20}, "consensus"),
    ],
)
def test_searches_that_a_page_lacks_are_refused(tmp_path, search, field):
    run = make_run(tmp_path, "up_down", RECURRENT, "word")
    write_json(run / "search.json", search)
    with pytest.raises(ConfigError, match=rf"search option {field}: .* a page has"):
        pack_captioner(load_finished(run))


def test_values_stay_as_they_are(tmp_path):
    """float32 of 24 bits need 4 bytes each; those of the package were rounded to float16."""
    import json
    import zlib

    run = make_run(tmp_path, "up_down", RECURRENT, "word")
    forms = {}
    for name, folder in (("own", run), ("package", find("flickr8k-mini"))):
        content = zlib.decompress(pack_captioner(load_finished(folder)).content)
        size = int.from_bytes(content[:4], "little")
        forms[name] = json.loads(content[4 : 4 + size])["form"]
    assert forms == {"own": "float32", "package": "float16"}


def test_sparsity_is_that_of_the_masks():
    packed = pack_captioner(load_finished(find("flickr8k-mini")))
    assert sum(one["size"] for one in packed.tensors) == 3_580_032
    assert sum(one["kept"] for one in packed.tensors) == 180_240
    assert len(packed.content) < 500_000

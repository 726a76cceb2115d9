"""`Captioner`: every option of a search in words, for one image, a batch, a folder."""

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
import threading

import captioner_runs
import jax
import numpy as np
import pytest
from captioner_runs import LENGTH, WIDTH, image_arrays, make_run, write_features

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.engines import Automatic, Compiled
from sparsecap_jax.data.batches import pad_regions
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.decoding import DecodeOptions, attention_weights, decode, make_ensemble
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.models import MODELS
from sparsecap_jax.models.up_down import UpDown
from sparsecap_jax.runs.directory import load_run

FEATURES, BOXES = image_arrays(6)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    top = tmp_path_factory.mktemp("runs")
    return [make_run(top / str(seed), seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def captioner(runs):
    return Captioner.load(runs[0])


def padded(features, boxes=None):
    """All images in one batch of the largest bucket."""
    boxes = boxes or [None] * len(features)
    images = [
        RegionFeatures(one, box, one.mean(axis=0)) for one, box in zip(features, boxes, strict=True)
    ]
    return pad_regions(images, len(images), 8)


def test_captions_are_those_of_the_search(captioner):
    run = captioner.run
    search = {"beam_size": 3, "length_penalty": "wu_0.7", "no_repeat_ngram": 1}
    options = DecodeOptions(max_length=LENGTH, **search)
    expected = decode(run.model, run.params, padded(FEATURES), options)
    # Alone, an image lies in the smallest bucket that holds it; neither that nor its batch matters.
    alone = [captioner.candidates(one, **search) for one in FEATURES]
    together = captioner.candidates(FEATURES, **search)
    assert [[one.tokens for one in captions] for captions in together] == [
        [one.tokens for one in captions] for captions in alone
    ]
    for image, captions in enumerate(alone):
        for row, caption in enumerate(captions):
            length = int(expected.lengths[image, row])
            tokens = np.asarray(expected.tokens)[image, row, :length]
            assert caption.tokens == tuple(tokens.tolist())
            assert caption.text == run.tokenizer.decode(tokens)
            log_prob = np.asarray(expected.log_probs)[image, row].sum(dtype=np.float64)
            assert caption.log_prob == pytest.approx(log_prob, abs=1e-4)
            assert caption.score == pytest.approx(float(expected.scores[image, row]), abs=1e-4)
    assert len({captions[0].text for captions in alone}) > 3


@pytest.mark.parametrize("model", ["up_down", "relation_transformer"])
def test_more_regions_than_the_largest_bucket_of_the_run(model, tmp_path):
    captioner = Captioner.load(make_run(tmp_path / "run", model))
    rng = np.random.default_rng(3)
    features = rng.normal(size=(47, WIDTH)).astype(np.float32)
    corners = np.sort(rng.random((47, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    caption = captioner.caption(features, corners, search="greedy")
    regions = pad_regions([RegionFeatures(features, corners, features.mean(axis=0))], 1, 47)
    options = DecodeOptions(method="greedy", max_length=LENGTH)
    expected = decode(captioner.run.model, captioner.run.params, regions, options)
    length = int(expected.lengths[0, 0])
    assert caption.tokens == tuple(np.asarray(expected.tokens)[0, 0, :length].tolist())
    log_prob = np.asarray(expected.log_probs)[0, 0].sum(dtype=np.float64)
    assert caption.log_prob == pytest.approx(log_prob, abs=1e-4)


def test_the_caption_is_the_best_candidate(captioner, tmp_path):
    search = {"search": "sample", "num_samples": 5, "seed": 3}
    batch, found = captioner.caption(FEATURES, **search), captioner.candidates(FEATURES, **search)
    assert [one.score for one in batch] == [max(c.score for c in captions) for captions in found]
    assert any(best != captions[0] for best, captions in zip(batch, found, strict=True))
    assert captioner.caption(FEATURES[0], **search).text == batch[0].text
    assert captioner.candidates([]) == []
    store = open_store(write_features(tmp_path / "features", 1), WIDTH, False)
    assert list(captioner.caption_store(store, [], required=["dog"])) == []


@pytest.mark.parametrize(
    ("search", "count"),
    [
        ({"search": "greedy"}, 1),
        ({"beam_size": 4}, 4),
        ({"search": "diverse_beam", "beam_size": 4, "num_groups": 2}, 4),
        ({"search": "gumbel", "num_samples": 3}, 3),
    ],
)
def test_every_search_obeys_words(captioner, search, count):
    wishes = {"prefix": {0: "two", 1: "the cat"}, "required": ["dog|ball"], "no_repeat": True}
    wishes |= {"suppress": ["small"], "bad_endings": ["a", "the", "and"], "min_length": 3}
    free = captioner.candidates(FEATURES, **search)
    assert [len(captions) for captions in free] == [count] * len(FEATURES)
    found = captioner.candidates(FEATURES, **search, **wishes)
    for image, captions in enumerate(found):
        for caption in captions:
            words = caption.text.split()
            assert caption.text.startswith(wishes["prefix"].get(image, ""))
            assert {"dog", "ball"} & set(words)
            assert "small" not in words
            assert words[-1] not in ("a", "the", "and")
            assert all(a != b for a, b in itertools.pairwise(caption.tokens))
    assert free != found


def test_samples_depend_on_the_seed_and_the_image_alone(captioner, tmp_path):
    folder = write_features(tmp_path / "features", 6)
    search = {"search": "sample", "num_samples": 3}

    def texts(batch_size, seed):
        found = captioner.caption_folder(folder, batch_size=batch_size, seed=seed, **search)
        return {image_id: [one.text for one in captions] for image_id, captions in found}

    first = texts(6, 1)
    assert list(first) == [100, 101, 102, 103, 104, 105]
    assert texts(4, 1) == first
    assert texts(6, 2) != first


def test_attention_has_a_row_for_every_word(captioner, runs):
    run = captioner.run
    found = captioner.candidates(FEATURES, beam_size=2, attention=True)
    options = DecodeOptions(beam_size=2, max_length=LENGTH)
    tokens = decode(run.model, run.params, padded(FEATURES), options).tokens
    weights = np.asarray(attention_weights(run.model, run.params, padded(FEATURES), tokens))
    for image, captions in enumerate(found):
        regions = len(FEATURES[image])
        for row, caption in enumerate(captions):
            words = [t for t in caption.tokens if t not in (run.tokenizer.eos_id, 0)]
            assert len(words) == len(caption.text.split())
            places = [place for place, token in enumerate(caption.tokens) if token in words]
            expected = weights[image, row, places, :regions]
            np.testing.assert_allclose(caption.attention, expected, atol=1e-5)
            np.testing.assert_allclose(caption.attention.sum(axis=1), 1, atol=1e-5)
    assert captioner.caption(FEATURES[0]).attention is None


def test_ensembles_join_the_models_of_several_runs(runs, captioner, tmp_path):
    other = make_run(tmp_path / "relations", "relation_transformer", seed=5)
    joined = Captioner.load([runs[0], other])
    assert joined.needs_boxes
    members = [(one.run.model, one.run.params) for one in (captioner, Captioner.load(other))]
    options = DecodeOptions(beam_size=2, max_length=LENGTH)
    expected = decode(*make_ensemble(members), padded(FEATURES, BOXES), options)
    found = joined.candidates(FEATURES, BOXES, beam_size=2)
    for image, captions in enumerate(found):
        for row, caption in enumerate(captions):
            assert caption.score == pytest.approx(float(expected.scores[image, row]), abs=1e-4)
    assert [one.text for one in joined.caption(FEATURES, BOXES, beam_size=2)] != [
        one.text for one in captioner.caption(FEATURES, beam_size=2)
    ]
    with pytest.raises(DataError, match="image 0: boxes: found none, but the model needs them"):
        joined.caption(FEATURES)


def test_runs_that_do_not_fit_together_are_refused(runs, tmp_path):
    words = make_run(tmp_path / "words", words=["other words than those of the first"] * 4)
    with pytest.raises(ConfigError, match="run 1 has another tokenizer than run 0"):
        Captioner.load([runs[0], words])
    wide = make_run(tmp_path / "wide", feature_size=9)
    with pytest.raises(ConfigError, match="run 2: feature_size: found 9, expected 6 as in run 0"):
        Captioner.load([*runs, wide])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((FEATURES, BOXES[:2]), "boxes: found 2 images, expected 6"),
        ((FEATURES[0], np.zeros((1, 3))), r"image 0: boxes: expected shape \[\d, 4\]"),
        (([np.zeros((3, 9), np.float32)],), r"image 0: features: expected shape \[R, 6\]"),
    ],
)
def test_wrong_arrays_are_refused(captioner, given, message):
    with pytest.raises(DataError, match=message):
        captioner.caption(*given)


def test_a_misspelt_option_of_a_search_is_named(captioner):
    message = r"^search option beam_sise: unknown; did you mean 'beam_size'\?"
    for call in (captioner.caption, captioner.candidates):
        with pytest.raises(ConfigError, match=message):
            call(FEATURES[0], beam_sise=3)
    with pytest.raises(ConfigError, match=message):
        next(captioner.photo_candidates([], beam_sise=3))


def test_twenty_batches_of_mixed_lengths_compile_nothing_new(captioner, tmp_path):
    """Batches of both buckets; each image has a word required of it."""
    folder, compiled = write_features(tmp_path / "features", 100), []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    def lengths(words):
        required = {100 + image: [words[image % 3]] for image in range(100)}
        options = {"batch_size": 5, "beam_size": 2, "no_repeat_ngram": 1, "required": required}
        found = captioner.caption_folder(folder, **options)
        return [len(captions[0].tokens) for _, captions in found]

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        lengths(("dog", "cat", "ball"))
        assert compiled
        compiled.clear()
        assert len(set(lengths(("red", "home", "two")))) >= 3
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    "search",
    [
        {"search": "greedy", "attention": True},
        {"search": "sample", "num_samples": 3, "seed": 4},
        {"beam_size": 4, "required": ["dog"], "length_penalty": "avg_0"},
    ],
)
def test_the_sparse_runtime_captions_alike(runs, captioner, search):
    ours = Captioner.load(runs[0], backend="sparse")
    for found, expected in zip(
        ours.candidates(FEATURES, **search), captioner.candidates(FEATURES, **search), strict=True
    ):
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)
            if "attention" in search:
                np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)


@pytest.mark.parametrize("name", ["flickr8k", "flickr8k-mini"])
def test_photos_and_features_are_captioned_without_jax(name):
    """Nor Numba, which takes longer to start than such a model takes for many photos."""
    code = f"""
import sys, numpy as np
from sparsecap_jax import Captioner
captioner = Captioner.load({name!r})
rng = np.random.default_rng(0)
print(captioner.caption(np.maximum(rng.standard_normal((14, 1280)), 0)).text)
photo = rng.integers(0, 255, (40, 60, 3)).astype(np.uint8)
print(next(captioner.caption_photos(photo)).text)
heavy = "jax", "flax", "orbax", "matplotlib", "numba"
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *captions, modules = done.stdout.splitlines()
    assert all(len(caption.split()) > 3 for caption in captions) and len(captions) == 2
    assert modules == "[]"


def test_auto_takes_the_sparse_runtime_where_it_pays(runs):
    dense = Captioner.load(runs[0])  # nothing pruned
    assert dense._engine.sparse.pays(1) and not dense._engine.sparse.pays(2)
    assert dense.caption(FEATURES[0], search="greedy").text
    assert dense._engine.compiled is None
    assert dense.caption(FEATURES[0], beam_size=2).text
    assert dense._engine.compiled is not None
    pruned = Captioner.load("flickr8k-mini")
    assert pruned._engine.sparse.pays(1) and pruned._engine.sparse.pays(150)
    assert pruned._engine.compiled is None


class Mine(UpDown):
    """A model that the sparse runtime does not know."""


def test_models_without_a_sparse_runtime(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS._entries, "mine", Mine)
    monkeypatch.setitem(captioner_runs.SIZES, "mine", captioner_runs.SIZES["up_down"])
    mine = make_run(tmp_path / "mine", "mine")
    for members in (mine, [runs[0], mine]):
        assert isinstance(Captioner.load(members)._engine, Compiled)
        with pytest.raises(ConfigError, match="no sparse runtime for model 'mine'"):
            Captioner.load(members, backend="sparse")
    assert isinstance(Captioner(load_run(mine), backend="auto")._engine, Compiled)


def test_an_accelerator_gets_xla(runs, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    for platforms, kind in (("", Compiled), ("cpu", Automatic)):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        assert isinstance(Captioner.load(runs[0])._engine, kind)
        assert isinstance(Captioner(load_run(runs[0]), backend="auto")._engine, kind)


def test_weights_that_are_written_anew_are_not_mixed_with_the_old(tmp_path):
    folder = make_run(tmp_path / "run")
    captioner = Captioner.load(folder, backend="auto")
    before = captioner.checksum
    make_run(folder, seed=1)
    assert captioner.caption(FEATURES[0], search="greedy").text
    for ask in ("checksum", "run"):
        with pytest.raises(CheckpointError, match="weights have changed since they were loaded"):
            getattr(captioner, ask)
    with pytest.raises(CheckpointError, match="weights have changed since they were loaded"):
        captioner.caption(FEATURES, beam_size=2)  # by XLA
    assert Captioner.load(folder).checksum != before


def test_threads_share_a_captioner_which_compiles_once(runs, captioner):
    shared, found = Captioner.load(runs[0]), {}
    made = []
    make = shared._engine.make_compiled
    shared._engine.make_compiled = lambda: made.append(1) or make()

    def work(number):
        found[number] = [shared.caption(FEATURES[number], beam_size=size) for size in (1, 2)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    for number, captions in found.items():
        expected = [captioner.caption(FEATURES[number], beam_size=size) for size in (1, 2)]
        assert [one.tokens for one in captions] == [one.tokens for one in expected]


def test_faulty_backends_and_weights_are_named(runs, tmp_path):
    with pytest.raises(ConfigError, match="backend is 'spars'; did you mean 'sparse'"):
        Captioner.load(runs[0], backend="spars")
    broken = tmp_path / "broken"
    shutil.copytree(runs[0], broken)
    config = json.loads((broken / "config.json").read_text())
    config["model"]["rnn_size"] = 24
    (broken / "config.json").write_text(json.dumps(config))
    message = rf"^{broken}: weight fc_embed/kernel has shape \(6, 16\)"
    with pytest.raises(CheckpointError, match=message):
        Captioner.load(broken, backend="sparse")
    with pytest.raises(CheckpointError, match=r"not as config.json and tokenizer say"):
        Captioner.load(broken)
    file = tmp_path / "model.scap"
    file.write_bytes((runs[0] / "model.scap").read_bytes()[:-1] + b"?")
    for backend in ("sparse", "xla"):  # the path comes once
        with pytest.raises(CheckpointError, match=rf"^{file}: [a-z_/]+: damaged: its checksum"):
            Captioner.load(file, backend=backend)

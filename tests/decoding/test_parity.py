"""Captions, log-probs and scores of the reference, for all of its models and searches.

Every model decodes with the figures that concern it; SPARSECAP_ALL_FIGURES=1 runs all searches on
all models, which only compiles longer.
"""

import os

import jax
import numpy as np
import pytest
from decoding_fakes import fast_decode
from flax.traverse_util import flatten_dict
from reference_cases import config_of, load, regions

from sparsecap_jax.decoding import DecodeOptions
from sparsecap_jax.pruning.masks import apply_masks
from sparsecap_jax.types import Regions

SEARCHES = {
    "greedy": {"method": "greedy"},
    "greedy_constraint": {"method": "greedy", "no_repeat": True},
    "beam2": {"beam_size": 2},
    "beam3": {"beam_size": 3},
    "beam5": {"beam_size": 5},
    "beam3_wu0.7": {"beam_size": 3, "length_penalty": "wu_0.7"},
    "beam3_avg0": {"beam_size": 3, "length_penalty": "avg_0"},
    "beam3_constraint": {"beam_size": 3, "no_repeat": True},
    "beam3_temp0.5": {"beam_size": 3, "temperature": 0.5},
    "beam4_group2_div0.5_repaired": {"beam_size": 4, "num_groups": 2, "diversity": 0.5},
    "beam4_group4_div1.0_repaired": {"beam_size": 4, "num_groups": 4, "diversity": 1.0},
    "beam5_wu0.7": {"beam_size": 5, "length_penalty": "wu_0.7"},
    "beam5_avg0": {"beam_size": 5, "length_penalty": "avg_0"},
}
EVERY = tuple(SEARCHES)[:11]
CONSISTENT = ("greedy", "beam2", "beam3", "beam5")

# Which figures of a file are right: its own, those decoded without a cache (where the reference's
# cache mixes shared layers up), or those of the dense class (where it has no cache at all).
OWN = {
    "up_down_lstm": EVERY,
    "up_down_lstm_logit2": ("beam3",),
    "up_down_lstm_prune_mag_blind": EVERY,
    "up_down_lstm_prune_supermask": EVERY,
    "transformer": ("greedy", "beam3_constraint", "beam4_group2_div0.5_repaired"),
    "transformer_share_att_kv": ("beam3",),
    "transformer_share_att_qk": ("beam3",),
    "relation_transformer": ("greedy", "beam3_temp0.5"),
    "relation_transformer_no_trig": ("beam3",),
}
WITHOUT_CACHE = {
    "transformer_share_layer": ("beam3",),
    "transformer_acort_mixed": ("greedy",),
    "relation_transformer_acort_kv": ("beam3",),
    "relation_transformer_acort_qk": ("beam2",),
    "relation_transformer_prune_mag_uniform": ("beam5",),
    "relation_transformer_prune_supermask": ("beam5",),
}


def cases():
    everything = bool(os.environ.get("SPARSECAP_ALL_FIGURES"))
    for name, few in OWN.items():
        for search in EVERY if everything else few:
            yield name, search, ""
    for name, few in WITHOUT_CACHE.items():
        for search in CONSISTENT if everything else few:
            yield name, search, "nocache_"
            if "prune" in name:
                yield name, search, "dense_"


def params_of(case, variables):
    """Parameters with the masks applied; supermasks are stored as logits, which round at 0."""
    if not variables["masks"]:
        return variables["params"]
    logits = config_of(case)["prune_type"] == "supermask"
    binary = jax.tree.map(lambda mask: np.float32(mask > 0) if logits else mask, variables["masks"])
    return apply_masks(variables["params"], binary)


def assert_equal_to(decoded, case, key, atol, score_atol):
    expected = case[f"{key}__seq"]
    np.testing.assert_array_equal(decoded.tokens, expected)
    # The reference's greedy log-probs go on after the end of a caption.
    lengths = np.asarray(decoded.lengths)[..., None]
    inside = np.arange(expected.shape[-1]) < lengths
    ends = np.take_along_axis(expected, lengths - 1, axis=-1)
    assert ((ends == 3) | (lengths == expected.shape[-1])).all()
    theirs = np.where(inside, case[f"{key}__seq_logprobs"], 0)
    np.testing.assert_allclose(decoded.log_probs, theirs, atol=atol)
    if f"{key}__p" in case:
        np.testing.assert_allclose(decoded.scores, case[f"{key}__p"], atol=score_atol)


@pytest.mark.parametrize(("name", "search", "variant"), list(cases()))
def test_random_models_decode_as_in_the_reference(golden, name, search, variant):
    case = golden(f"arch/{name}.npz")
    model, variables = load(case)
    options = DecodeOptions(max_length=10, **SEARCHES[search])
    # Half of them with padding, which must change nothing.
    images = padded(regions(case)) if variant else regions(case)
    decoded = fast_decode(model, params_of(case, variables), images, options)
    decoded = jax.tree.map(lambda leaf: leaf[:3], decoded)
    atol = 3e-5 if name.startswith("up_down") else 1e-4
    assert_equal_to(decoded, case, f"out/{variant}{search}", atol, 3e-3)


@pytest.mark.parametrize("name", ["up_down_lstm", "relation_transformer"])
def test_random_samples_of_the_reference_have_our_log_probs(golden, name):
    """Its samples are forced upon ours as prefixes, which must give them the same log-probs."""
    case = golden(f"arch/{name}.npz")
    model, variables = load(case)
    options = DecodeOptions(method="greedy", max_length=10)
    for key in ("out/random4", "out/random3_temp0.7"):
        tokens = case[f"{key}__seq"]
        for row in range(3):
            forced = tokens[:, row]
            decoded = fast_decode(
                model, params_of(case, variables), regions(case), options, prefix=forced
            )
            known = forced != 0
            np.testing.assert_array_equal(np.asarray(decoded.tokens)[:, 0][known], forced[known])
            expected = case[f"{key}__seq_logprobs"][:, row][known]
            found = np.asarray(decoded.log_probs)[:, 0][known]
            np.testing.assert_allclose(found, expected, atol=1e-4)


def coco5(shared, ids):
    """The five images' regions as one padded batch."""
    folder = shared / "reference" / "coco5" / "bu"

    def read(kind):
        return [np.load(folder / f"cocobu_{kind}" / f"{i}.npy").astype(np.float32) for i in ids]

    att, boxes = read("att"), read("box_relative")
    most = max(len(one) for one in att)

    def stacked(arrays):
        return np.stack([np.pad(one, ((0, most - len(one)), (0, 0))) for one in arrays])

    mask = np.arange(most) < np.array([[len(one)] for one in att])
    return Regions(stacked(att), mask, stacked(boxes), np.stack(read("fc")))


@pytest.fixture(scope="module")
def published(shared):
    from sparsecap_jax.interop.checkpoint_dir import open_checkpoint_dir
    from sparsecap_jax.interop.reference import load_state_dict

    folder = shared / "reference" / "checkpoint"
    checkpoint = open_checkpoint_dir(next(folder.glob("TINY3*.zip")))
    model, variables = load_state_dict(checkpoint.dense_state_dict(), checkpoint.config)
    assert not flatten_dict(variables["masks"])
    return model, variables["params"]


@pytest.mark.parametrize(
    "search",
    ["greedy", "greedy_constraint", "beam2", "beam3", "beam5", "beam5_wu0.7", "beam5_avg0"],
)
def test_the_published_model_captions_coco_as_in_the_reference(golden, shared, published, search):
    case = golden("checkpoint/tiny3_xe.npz")
    model, params = published
    images = coco5(shared, case["image_ids"])
    if search.startswith("beam5"):
        images = padded(images)
    options = DecodeOptions(max_length=16, **SEARCHES[search])
    decoded = fast_decode(model, params, images, options)
    first = jax.tree.map(lambda leaf: leaf[:5], decoded)
    assert_equal_to(first, case, search, 1e-4, 1e-4)


def padded(images):
    """More regions of nothing, and images that only fill the batch up: none changes a caption."""

    def pad(leaf, *more):
        return np.pad(leaf, [(0, extra) for extra in more])

    mask = pad(images.mask, 3, 9)
    mask[len(images.mask) :, 0] = True
    return Regions(
        features=pad(images.features, 3, 9, 0),
        mask=mask,
        boxes=pad(images.boxes, 3, 9, 0),
        fc=pad(images.fc, 3, 0),
    )

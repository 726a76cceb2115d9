"""Reads a golden architecture file into our types; shared by the parity tests."""

import json

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sparsecap_jax.interop.reference import MASK_SUFFIX, load_state_dict, rules
from sparsecap_jax.types import Regions


def config_of(case):
    return json.loads(str(case["config_json"]))


def tensors(case, prefix):
    """`{reference name: array}` of all keys of `case` below `prefix`."""
    return {k.removeprefix(prefix): v for k, v in case.items() if k.startswith(prefix)}


def load(case):
    """The model and the variables of a golden file."""
    return load_state_dict(tensors(case, "param/"), config_of(case))


def to_paths(named, config, suffix=""):
    """`{reference name + suffix: array}` as a nested dict of our paths and layout."""
    flat = {}
    for rule in rules(config):
        name = rule.reference + suffix
        if name in named:
            flat[rule.path] = named[name].T if rule.transposed else named[name]
    return unflatten_dict(flat)


def masks_of(case, prefix):
    return to_paths(tensors(case, prefix), config_of(case), MASK_SUFFIX)


def regions(case):
    """The visual inputs; models without boxes or fc get zeros."""
    mask = case["in/att_masks"] > 0
    images, count = mask.shape
    features = case["in/att_feats"]
    boxes = case.get("in/boxes", np.zeros((images, count, 4), np.float32))
    fc = case.get("in/fc_feats", np.zeros((images, features.shape[-1]), np.float32))
    return Regions(features, mask, boxes, fc)


def captions(case):
    """Tokens and mask as `[B, S, T]`."""
    images = case["in/att_masks"].shape[0]
    shape = (images, -1, case["in/seqs"].shape[-1])
    return case["in/seqs"].reshape(shape), case["in/masks"].reshape(shape) > 0


def assert_trees_close(ours, theirs, atol, rtol):
    """Compare two nested dicts leaf by leaf, naming the leaf that differs."""
    ours, theirs = flatten_dict(ours), flatten_dict(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        name = "/".join(path)
        np.testing.assert_allclose(ours[path], value, atol=atol, rtol=rtol, err_msg=name)

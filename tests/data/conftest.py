"""Fixtures that several tests of the data share."""

import numpy as np
import pytest
from dataset_files import dump, karpathy_image
from pipeline_files import CAPTIONS, COUNTS, WIDTH, caption_text

from sparsecap_jax.data.karpathy import Record
from sparsecap_jax.data.stores import NpyFolderStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Features and boxes of images 100, 101, ... as `.npy` files."""
    root = tmp_path_factory.mktemp("pipeline")
    for name in ("cocobu_att", "cocobu_box_relative"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for i, count in enumerate(COUNTS):
        np.save(
            root / f"cocobu_att/{100 + i}.npy", rng.normal(size=(count, WIDTH)).astype(np.float32)
        )
        corners = rng.uniform(size=(2, count, 2)).astype(np.float32)
        boxes = np.concatenate([corners.min(0), corners.max(0)], axis=1)
        np.save(root / f"cocobu_box_relative/{100 + i}.npy", boxes)
    return root


@pytest.fixture(scope="module")
def store(folder):
    """The features of `folder`."""
    return NpyFolderStore(folder, feature_size=WIDTH, need_boxes=True)


@pytest.fixture(scope="module")
def records():
    """The images of `folder` with their captions."""
    return [
        Record(100 + i, "train", captions=tuple(caption_text(i, c) for c in range(count)))
        for i, count in enumerate(CAPTIONS)
    ]


@pytest.fixture
def coco_folder(tmp_path):
    """A Karpathy split of five images."""
    names = ["train", "restval", "val", "test", "test"]
    images = [karpathy_image(i + 1, name) for i, name in enumerate(names)]
    dump(tmp_path / "dataset_coco.json", {"images": images})
    return tmp_path

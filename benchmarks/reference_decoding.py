"""Times the PyTorch reference's decoding; started by `decoding.py` with a Python that has torch.

python reference_decoding.py CHECKOUT FOLDER THREADS

FOLDER holds job.json, weights.npz and regions_BATCH.npz. Prints a line [batch, beam, seconds] for
each setting, the seconds of the fastest run.
"""

import importlib.abc
import importlib.machinery
import json
import pathlib
import sys
import time
from unittest.mock import MagicMock

import numpy as np
import torch

# Imported by the reference for data and evaluation, not by what is timed here.
UNUSED = ("tqdm", "torchvision", "PIL", "sentencepiece", "six", "requests", "pkg_resources")


class Placeholders(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for what is not installed and not needed."""

    def find_spec(self, name, path=None, target=None):
        """Find one of the unused packages or a module of it."""
        if name.split(".")[0] in UNUSED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        """Make a module that has every name."""
        module = MagicMock()
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        """Nothing is left to do."""


class Config(dict):
    """The reference reads its config by attribute and by `get`."""

    __getattr__ = dict.__getitem__


def load(checkout, folder, config):
    sys.path.insert(0, checkout)
    sys.meta_path.append(Placeholders())
    from sparse_caption.models import get_model

    model = get_model(config["caption_model"])(Config(config)).eval()
    with np.load(folder / "weights.npz") as weights:
        state = {name: torch.from_numpy(weights[name]) for name in weights.files}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith(".pe") for name in missing), missing
    return model


def inputs(path):
    with np.load(path) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return {
        "att_feats": tensors["features"],
        "att_masks": tensors["mask"].float(),
        "fc_feats": tensors["fc"],
        "boxes": tensors["boxes"],
    }


def main(checkout, folder, threads):
    torch.set_num_threads(int(threads))
    folder = pathlib.Path(folder)
    job = json.loads((folder / "job.json").read_text())
    model = load(checkout, folder, job["config"])
    for batch in job["batches"]:
        given = inputs(folder / f"regions_{batch}.npz")
        for beam in job["beams"]:
            seconds = []
            for _ in range(job["repeats"] + 1):
                start = time.perf_counter()
                with torch.no_grad():
                    model(mode="sample", opt={"beam_size": beam}, **given)
                seconds.append(time.perf_counter() - start)
            print(json.dumps([batch, beam, min(seconds[1:])]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

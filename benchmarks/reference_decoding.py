"""Times the PyTorch reference's decoding; started by `decoding.py` with a Python that has torch.

python reference_decoding.py CHECKOUT FOLDER THREADS

FOLDER holds job.json, weights.npz and regions_BATCH.npz. Prints a line [batch, beam, seconds] for
each setting, the seconds of the fastest run.
"""

import json
import pathlib
import sys
import time

import numpy as np
import torch
from reference_common import build


def load(checkout, folder, config):
    model = build(checkout, config).eval()
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

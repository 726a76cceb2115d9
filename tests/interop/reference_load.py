"""Loads exported folders with the PyTorch reference; started by `test_reference_load.py` with a
Python that has torch.

python reference_load.py CHECKOUT FOLDER...

Each FOLDER is an exported checkpoint with `inputs.npz` beside its weights; `torch_prune.pth`, where
it is there, replaces them. Prints a JSON line for each and writes log-probs to its `theirs.npz`.
"""

import json
import pathlib
import sys
import types

import numpy as np
import packaging.version
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
# The reference reads versions with a package that newer setuptools do not have.
sys.modules.setdefault("pkg_resources", types.SimpleNamespace(packaging=packaging))

from reference_common import build  # noqa: E402
from torch.nn.utils import prune  # noqa: E402


def load(checkout, folder):
    """Config, tokenizer and model as `scripts/eval_model.py` of the reference makes them."""
    pruned = folder / "torch_prune.pth"
    (weights,) = [pruned] if pruned.exists() else folder.glob("model_best*.pth")
    state = torch.load(weights, weights_only=True)
    state = {name: v.to_dense() if v.is_sparse else v for name, v in state.items()}
    values = json.loads((folder / "config.json").read_text())
    if not any(name.endswith("_pruning_mask") for name in state):
        values["caption_model"] = values["caption_model"].removesuffix("_prune")
    model = build(checkout, values)
    for name in state:
        if name.endswith("_orig"):
            module, _, parameter = name.removesuffix("_orig").rpartition(".")
            prune.identity(model.get_submodule(module), parameter)
    model.load_state_dict(state, strict=True)

    from sparse_caption.tokenizer import get_tokenizer
    from sparse_caption.utils.config import Config

    config = Config.load_config_json(folder / "config.json", verbose=False)
    assert config.dict()["version"] == config.version  # the form of this very checkout
    before = dict(vars(config))
    config.log_dir = str(folder)
    tokenizer = get_tokenizer(config.tokenizer)(config)
    # A tokenizer adds what a config lacks: it lacked nothing, and nothing was overruled.
    assert vars(config) == {**before, "log_dir": str(folder)}
    return model.eval(), tokenizer, len(state)


def main(checkout, *folders):
    torch.set_num_threads(1)
    for folder in map(pathlib.Path, folders):
        model, tokenizer, count = load(checkout, folder)
        with np.load(folder / "inputs.npz") as arrays:
            given = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        visual = {name: given[name] for name in ("att_feats", "att_masks", "fc_feats", "boxes")}
        with torch.no_grad():
            log_probs = model(**visual, seqs=given["seqs"].long(), masks=given["masks"])
            found, _ = model(**visual, mode="sample", opt={"beam_size": 1})
        np.savez(folder / "theirs.npz", log_probs=log_probs.numpy(), tokens=found[:, 0].numpy())
        print(
            json.dumps(
                {
                    "folder": folder.name,
                    "class": type(model).__module__.rsplit(".", 1)[-1],
                    "tensors": count,
                    "captions": [tokenizer.decode(row[0]) for row in found],
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

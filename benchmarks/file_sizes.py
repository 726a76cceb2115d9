"""Sizes of models' files beside the entropy of their weights, and how long loading takes.

python benchmarks/file_sizes.py --run=flickr8k-mini --pth=CHECKPOINT.zip

Masks of the papers' models are random, which is the hardest case: trained masks have denser and
sparser rows and columns. Their values are normally distributed. Runs, and a published checkpoint
of the reference, are what they are.
"""

import argparse
import pathlib
import tempfile
import time
import zipfile

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from paper_models import our_fields, paper_config

from sparsecap_jax.commands.convert import import_reference
from sparsecap_jax.files import write_atomically
from sparsecap_jax.model_files import FORMS, tensors, write_model
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.pruning.paths import by_path, select
from sparsecap_jax.runs.directory import load_run
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.runs.weights import load_weights, save_weights

PATTERNS = "0.95,0.991,2:4,1:4,blocks 0.95"
HEADER = """# Sizes of models' files

`{command}`

Weights alone, in bytes; `entropy` is the sum over tensors of the entropy of the positions (H(p)
bits for each weight of a pruned tensor) and of the values' bytes, each tensor by itself
([formats.md](../formats.md#sizes)). Seconds are the least of {repeats} on the machine in use, files
in memory: the model file, and the same weights as a dense `.npz`.

| model | sparsity | form | bytes | entropy | ratio | `.npz` | load | dense `.npz` loads |
|---|---|---|---|---|---|---|---|---|
"""


def random_mask(rng, shape, pattern):
    """Return a mask of a sparsity, of 4 x 4 blocks ("blocks" and a sparsity), or of N:M inputs."""
    kept, _, group = pattern.partition(":")
    if group:
        lanes = (-(-shape[0] // int(group)), int(group), *shape[1:])
        order = rng.random(lanes, np.float32).argsort(axis=1)
        return (order < int(kept)).reshape(-1, *shape[1:])[: shape[0]]
    if pattern.startswith("blocks"):
        small = rng.random([-(-size // 4) for size in shape]) >= float(pattern.split()[1])
        return small.repeat(4, axis=0).repeat(4, axis=1)[: shape[0], : shape[1]]
    return rng.random(shape, np.float32) >= float(pattern)


def paper_weights(name, pattern):
    """Return params and masks of a model of the papers, as flat dicts; see `random_mask`."""
    shapes = by_path(abstract_params(make_model(our_fields(paper_config(name)))))
    prunable, rng = set(select(unflatten_dict(shapes))), np.random.default_rng(0)
    params, masks = {}, {}
    for path, leaf in shapes.items():
        value = rng.standard_normal(leaf.shape, np.float32) / np.float32(leaf.shape[0] ** 0.5)
        if path in prunable:
            mask = random_mask(rng, leaf.shape, pattern)
            value, masks["/".join(path)] = np.where(mask, value, np.float32(0)), mask
        params["/".join(path)] = value
    return params, masks


def entropy(params, masks, form):
    """Return the bytes of positions and values at their entropy."""
    bits = 0.0
    for name, value in params.items():
        kept = None
        if name in masks:
            kept = np.flatnonzero(masks[name])
            bits += tensors.bits(np.array([len(kept), value.size - len(kept)]))
        _, planes, raw = tensors.encoded(name, value, kept, form)
        bits += 8 * len(raw)
        bits += sum(tensors.bits(p.counts) for p in planes if p.field in ("values", "steps"))
    return bits / 8


def seconds(function, repeats):
    """Return the least of some times."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def rows(title, params, masks, repeats, note=""):
    """Return the lines of a model."""
    lines = []
    nonzeros = sum(np.count_nonzero(mask) for mask in masks.values())
    sparsity = 1 - nonzeros / sum(np.size(mask) for mask in masks.values())
    with tempfile.TemporaryDirectory() as folder:
        path, npz, dense = (pathlib.Path(folder, name) for name in ("m.scap", "m.npz", "d.npz"))
        np.savez(dense, format_version=np.int32(1), **{f"dense:{k}": v for k, v in params.items()})
        for form in FORMS:
            size = write_model(path, params, masks, form=form)["weights"]
            old = f"{save_weights(npz, params, masks):,}" if form == FORMS[0] else ""
            load = seconds(lambda: load_weights(path), repeats)
            slow = seconds(lambda: load_weights(dense), repeats)
            least = entropy(params, masks, form)
            cells = [title, f"{sparsity:.1%}", form, f"{size:,}{note if form == FORMS[0] else ''}"]
            cells += [f"{least:,.0f}", f"{size / least:.3f}", old]
            lines.append("| {} |\n".format(" | ".join([*cells, f"{load:.3f}", f"{slow:.3f}"])))
            print(lines[-1], end="", flush=True)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="up_down,ort", help="models of the papers")
    parser.add_argument("--patterns", default=PATTERNS, help="masks of these, see random_mask")
    parser.add_argument("--run", action="append", default=[], help="run directory or name")
    parser.add_argument("--pth", help="zip of a checkpoint of the reference")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="docs/results/file_sizes.md", help="page to write")
    arguments = parser.parse_args()
    lines = []
    for name in arguments.run:
        run = load_run(resolve_run(name))
        params, masks = (flatten_dict(tree, sep="/") for tree in (run.params, run.masks))
        lines += rows(pathlib.Path(name).name, params, masks, arguments.repeats)
    if arguments.pth:
        with tempfile.TemporaryDirectory() as folder:
            run = import_reference(arguments.pth, pathlib.Path(folder, "run"), [].append)
        with zipfile.ZipFile(arguments.pth) as archive:
            (pth,) = (info.file_size for info in archive.infolist() if info.filename[-4:] == ".pth")
        params, masks = (flatten_dict(tree, sep="/") for tree in (run.params, run.masks))
        name = pathlib.Path(arguments.pth).stem.partition("_")[0]
        note = f" (`.pth`: {pth:,})"
        lines += rows(f"{name}, as published", params, masks, arguments.repeats, note)
    for name in filter(None, arguments.models.split(",")):
        for pattern in arguments.patterns.split(","):
            structure = "" if pattern.startswith("0") else f", {pattern.split()[0]}"
            title = f"{name}, paper size{structure}"
            params, masks = paper_weights(name, pattern)
            lines += rows(title, params, masks, arguments.repeats)
    command = "python benchmarks/file_sizes.py"
    command += "".join(f" --run={name}" for name in arguments.run)
    command += f" --pth={pathlib.Path(arguments.pth).name}" if arguments.pth else ""
    with write_atomically(arguments.output) as file:
        file.write(HEADER.format(command=command, repeats=arguments.repeats))
        file.writelines(lines)


if __name__ == "__main__":
    main()

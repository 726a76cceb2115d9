"""Export of an Up-Down of the papers' size: seconds, memory, bytes, and whether tokens are ours."""

import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from decoding_cases import add_clock, set_mean_length
from export_scores import load_runner
from paper_models import FIELDS, paper_config, random_regions

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.pruning.summary import weight_counts
from sparsecap_jax.runs.config import default_config, model_config, model_section
from sparsecap_jax.runs.directory import LoadedRun, save_model
from sparsecap_jax.tokenizers import train_tokenizer

REPO = pathlib.Path(__file__).resolve().parents[1]
EXPORTS = {
    "ONNX": ["--format=onnx"],
    "ONNX, sparse": ["--format=onnx", "--sparse"],
    "ONNX, int8": ["--format=onnx", "--weights=int8"],
    "StableHLO": ["--format=stablehlo"],
}
KEPT, IMAGES, TOKENS, SEARCH = 0.05, 20, 10, {"beam_size": 3}
HEADER = """
## At the papers' size

Up-Down with 1,000 units, {words:,} words and features of 2,048 numbers, random weights of which
{sparsity:.1%} of {weights:,} are pruned; the model file has {file:,} bytes ({rounded:,} in int8).
Time and memory are those of the whole command, on two cores that others used as well. Tokens of
{images} images of 36 regions are compared with the sparse runtime's (int8: of the int8 model file):
greedy search, and three beams in ONNX; StableHLO was read by a process of its own.
{lengths}

| export | seconds | of processors | memory (GB) | encode + step | greedy | weights | equal tokens |
|---|---|---|---|---|---|---|---|
"""
# Greedy tokens from a folder of StableHLO, in a process without this package.
GREEDY = """
import json, pathlib, sys
import numpy as np
from jax import export

folder = pathlib.Path(sys.argv[1])
graph = json.loads((folder / "manifest.json").read_text())["graphs"]["greedy"]
greedy = export.deserialize(bytearray((folder / graph["file"]).read_bytes()))
with np.load(folder / "weights.npz") as weights, np.load(sys.argv[2]) as images:
    params = {name: weights[name] for name in graph["params"]}
    found = greedy.call(params, {name: images[name] for name in graph["inputs"]})
np.save(sys.argv[3], found["tokens"])
assert "sparsecap_jax" not in sys.modules
"""
# Runs a command, and prints the time of processors and the most memory that it took.
COST = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
sys.exit(code)
"""


def paper_run(folder):
    """Return an Up-Down of the papers' size that ends captions as trained ones do."""
    reference = paper_config("up_down")
    widths = FIELDS["up_down"]
    config = default_config(model="up_down")
    with config.unlocked():
        fields = {"embed_size": widths["input_encoding_size"], "rnn_size": widths["rnn_size"]}
        fields["attention_size"] = widths["att_hid_size"]
        config.model = model_section("up_down", **fields)
    config.max_seq_length = reference["max_seq_length"]
    config.data.feature_size = reference["att_feat_size"]
    words = [f"w{number}" for number in range(reference["vocab_size"] - 4)]
    texts = [" ".join(words)] * 5
    options = {"vocab_size": reference["vocab_size"]}
    tokenizer = train_tokenizer("word", texts, folder / "tokenizer", **options)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    module = make_model(model_config(config, tokenizer.vocab_size))
    params = pruned_params(abstract_params(module))
    add_clock(params, reference | ids)
    params["logit_0" if "logit_0" in params else "logit"]["bias"][
        [tokenizer.pad_id, tokenizer.bos_id]
    ] = -500
    set_mean_length(module, params, reference | ids, TOKENS)
    return LoadedRun(config, tokenizer, module, params, masks_of(params), search=SEARCH)


def pruned_params(shapes):
    """Draw params; of matrices, `KEPT` of the weights are not zero."""
    rng = np.random.default_rng(0)

    def draw(tree):
        if isinstance(tree, dict):
            return {key: draw(value) for key, value in tree.items()}
        leaf = rng.standard_normal(tree.shape, np.float32)
        if len(tree.shape) == 1:
            return leaf / np.float32(10)
        leaf /= np.float32(np.sqrt(KEPT * tree.shape[0]))
        return np.where(rng.random(tree.shape, np.float32) < KEPT, leaf, np.float32(0))

    return draw(shapes)


def masks_of(params):
    """Return the masks of the matrices."""
    if isinstance(params, dict):
        masks = {key: masks_of(value) for key, value in params.items()}
        return {key: mask for key, mask in masks.items() if mask is not None and len(mask)}
    return (params != 0).astype(np.float32) if params.ndim > 1 else None


def rows_of(captions, length):
    """Return tokens `[b, T]` of captions, zeros after their ends."""
    return np.array([(*c.tokens, *[0] * (length - len(c.tokens))) for c in captions], np.int32)


def same_tokens(folder, file, regions):
    """Return the images with equal tokens, as text."""
    ours, features = Captioner.load(file, backend="sparse"), list(regions.features)
    length = ours.config.max_seq_length
    greedy = rows_of(ours.caption(features, search="greedy"), length)
    if (folder / "caption.py").exists():
        theirs = load_runner(folder)
        beams = rows_of(ours.caption(features, **SEARCH), length)
        found = {
            "greedy": theirs.tokens(features, greedy=True) == greedy,
            "beams": theirs.tokens(features) == beams,
        }
    else:
        np.savez(folder / "images.npz", **regions._asdict())
        names = [folder, folder / "images.npz", folder / "tokens.npy"]
        subprocess.run([sys.executable, "-c", GREEDY, *map(str, names)], check=True)
        found = {"greedy": np.load(folder / "tokens.npy") == greedy}
    return ", ".join(f"{name} {same.all(axis=1).sum()}" for name, same in found.items())


def section():
    """Return the section of the results page."""
    with tempfile.TemporaryDirectory() as temporary:
        place, rows = pathlib.Path(temporary), []
        run = paper_run(place)
        files = {form: place / f"{form}.scap" for form in ("float32", "int8")}
        sizes = {form: save_model(file, run, form) for form, file in files.items()}
        regions = random_regions(IMAGES, paper_config("up_down"))
        for name, options in EXPORTS.items():
            folder = place / name
            command = [sys.executable, str(REPO / "launch/export.py"), *options]
            command += [f"--checkpoint={files['float32']}", f"--output={folder}"]
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", COST, *command], stdout=subprocess.PIPE)
            seconds = time.perf_counter() - start
            if done.returncode:
                sys.exit(f"{name}: {' '.join(command)} failed")
            graphs = {path.stem: path.stat().st_size for path in folder.iterdir()}
            same = same_tokens(folder, files["int8" if "int8" in name else "float32"], regions)
            processor, memory = map(float, done.stdout.split())
            cells = [name, f"{seconds:.0f}", f"{processor:.0f}", f"{memory / 1e9:.1f}"]
            cells += [f"{graphs['encode'] + graphs['step']:,}", f"{graphs['greedy']:,}"]
            cells += [f"{graphs['weights']:,}" if "weights" in graphs else "", same]
            rows.append("| {} |\n".format(" | ".join(cells)))
            print(*cells, flush=True)
        counts = weight_counts(run.params)
        lengths = [
            len(c.tokens)
            for c in Captioner.load(files["float32"]).caption(
                list(regions.features), search="greedy"
            )
        ]
    facts = {"sparsity": counts["sparsity"], "words": run.tokenizer.vocab_size, "images": IMAGES}
    facts["weights"] = round(counts["nonzeros"] / (1 - counts["sparsity"]))
    facts |= {"file": sizes["float32"], "rounded": sizes["int8"]}
    facts["lengths"] = f"Greedy captions have {min(lengths)} to {max(lengths)} tokens."
    return HEADER.format(**facts) + "".join(rows)


if __name__ == "__main__":
    print(section())

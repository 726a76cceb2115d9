"""Images per second of greedy and beam search, against the PyTorch reference where it is given.

python benchmarks/decoding.py --reference=DIR --reference_python=VENV/bin/python \
    --checkpoint=ZIP --features=DIR

Models of the papers' sizes get random weights, changed so that captions end after about
`--caption_length` tokens as those of trained models do; `--checkpoint` adds a published model on
real features. The reference runs in a process of its own, on the same weights and inputs, with each
of `--reference_threads`; the best counts. Nothing else should run on the machine.
"""

import json
import os
import pathlib
import subprocess
import tempfile
import time

import numpy as np
from absl import app, flags
from decoding_cases import add_clock, decode_options, logit_layer, random_model  # noqa: F401
from paper_models import MAX_LENGTH, random_regions

MODELS = flags.DEFINE_list("models", ["up_down", "ort"], "Keys of paper_models.FIELDS.")
SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)
BATCHES = flags.DEFINE_list("batches", ["1", "10", "50"], "Batch sizes.")
BEAMS = flags.DEFINE_list("beams", ["1", "2", "5"], "Beam sizes; 1 is greedy search.")
LENGTH = flags.DEFINE_integer("caption_length", 10, "Mean tokens of a caption; 0: none ends.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each; the fastest counts.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint of the reference, folder or zip.")
FEATURES = flags.DEFINE_string("features", None, "Folder with cocobu_att/ etc. for --checkpoint.")
REFERENCE = flags.DEFINE_string("reference", None, "Checkout of the PyTorch reference.")
PYTHON = flags.DEFINE_string("reference_python", "python", "Python that has torch.")
THREADS = flags.DEFINE_list("reference_threads", ["1", "2"], "Thread counts for the reference.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")


def published_model(path):
    """The model of a checkpoint of the reference: (model, params, the reference's config)."""
    from sparsecap_jax.interop.checkpoint_dir import open_checkpoint_dir
    from sparsecap_jax.interop.reference import load_state_dict, upgrade_config

    checkpoint = open_checkpoint_dir(path)
    model, variables = load_state_dict(checkpoint.dense_state_dict(), checkpoint.config)
    ids = {f"{name}_token_id": at for at, name in enumerate(("pad", "unk", "bos", "eos"))}
    config = ids | upgrade_config(checkpoint.config) | {"max_seq_length": MAX_LENGTH}
    # Published without masks, which are multiplied in already: for the dense class.
    config["caption_model"] = config["caption_model"].removesuffix("_prune")
    return model, variables["params"], config


def real_regions(batch, folder):
    """The images of a feature folder, over and over until there are `batch` of them."""
    from sparsecap_jax.types import Regions

    ids = sorted(path.stem for path in (pathlib.Path(folder) / "cocobu_att").glob("*.npy"))
    ids = [ids[i % len(ids)] for i in range(batch)]

    def read(kind):
        return [np.load(pathlib.Path(folder) / f"cocobu_{kind}" / f"{i}.npy") for i in ids]

    att, boxes = read("att"), read("box_relative")
    most = max(map(len, att))

    def padded(arrays):
        arrays = [np.pad(one, ((0, most - len(one)), (0, 0))) for one in arrays]
        return np.stack(arrays).astype(np.float32)

    mask = np.arange(most) < np.array([[len(one)] for one in att])
    return Regions(padded(att), mask, padded(boxes), np.stack(read("fc")).astype(np.float32))


def time_ours(model, params, config, regions, beam, repeats):
    """Seconds of the first call (compilation) and of the fastest later one; mean tokens."""
    import jax

    from sparsecap_jax.decoding import decode

    options, seconds = decode_options(config, beam), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        decoded = jax.block_until_ready(decode(model, params, regions, options))
        seconds.append(time.perf_counter() - start)
    return seconds[0] - min(seconds[1:]), min(seconds[1:]), float(decoded.lengths[:, 0].mean())


def torch_weights(params, config):
    """The weights as a state dict of the model that is compared with."""
    if config["caption_model"] != "soft_attention":
        from sparsecap_jax.interop.reference import export_state_dict

        return export_state_dict({"params": params}, config)
    lstm = params["lstm"]
    state = {f"{k}.weight": leaf["kernel"].T for k, leaf in params.items() if "kernel" in leaf}
    return state | {
        "embed.weight": params["embed"]["embedding"],
        "logit.bias": params["logit"]["bias"],
        "lstm.weight_ih": lstm["kernel_ih"].T,
        "lstm.weight_hh": lstm["kernel_hh"].T,
        "lstm.bias_ih": lstm["bias"],
        "lstm.bias_hh": np.zeros_like(lstm["bias"]),
    }


def time_reference(params, config, batches, beams, folder):
    """Run the reference in a process for each thread count; the least seconds of each setting."""
    if config["caption_model"] == "soft_attention":
        beams = [beam for beam in beams if beam == 1]  # no beam search in the PyTorch version
    np.savez(folder / "weights.npz", **torch_weights(params, config))
    for batch, regions in batches.items():
        arrays = {name: getattr(regions, name) for name in ("features", "mask", "boxes", "fc")}
        np.savez(folder / f"regions_{batch}.npz", **arrays)
    job = {"config": config, "batches": list(batches), "beams": beams, "repeats": REPEATS.value}
    (folder / "job.json").write_text(json.dumps(job))
    best = {}
    for threads in THREADS.value:
        script = pathlib.Path(__file__).with_name("reference_decoding.py")
        command = [PYTHON.value, str(script), REFERENCE.value, str(folder), threads]
        env = os.environ | {"OMP_NUM_THREADS": threads}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        for line in done.stdout.splitlines():
            batch, beam, seconds = json.loads(line)
            best[batch, beam] = min(seconds, best.get((batch, beam), seconds))
    return best


def report(name, rows):
    print(f"\n{name}\n")
    titles = ("batch", "beam", "tokens", "compile s", "images/s", "reference", "ratio")
    print("| " + " | ".join(titles) + " |")
    print("|" + " --: |" * len(titles))
    for row in rows:
        ours = row["batch"] / row["seconds"]
        cells = [row["batch"], row["beam"], f"{row['tokens']:.1f}", f"{row['compile']:.1f}"]
        cells.append(f"{ours:.1f}")
        if row["reference"] is None:
            cells += ["", ""]
        else:
            cells += [f"{row['batch'] / row['reference']:.1f}"]
            cells += [f"{row['reference'] / row['seconds']:.2f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def measure(name, model, params, config, batches):
    import jax

    beams = [int(beam) for beam in BEAMS.value]
    found = {}
    if REFERENCE.value:
        with tempfile.TemporaryDirectory() as folder:
            found = time_reference(params, config, batches, beams, pathlib.Path(folder))
    params = jax.device_put(params)
    rows = []
    for batch, regions in batches.items():
        for beam in beams:
            compiling, seconds, tokens = time_ours(
                model, params, config, regions, beam, REPEATS.value
            )
            row = {"model": name, "batch": batch, "beam": beam, "tokens": tokens}
            row |= {"compile": compiling, "seconds": seconds}
            rows.append(row | {"reference": found.get((batch, beam))})
    report(name, rows)
    return rows


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    from sparsecap_jax.types import Regions

    sizes = [int(batch) for batch in BATCHES.value]
    rows = []
    for name in MODELS.value:
        model, params, config = random_model(name, SCALE.value, LENGTH.value)
        batches = {batch: Regions(*random_regions(batch, config)) for batch in sizes}
        rows += measure(name, model, params, config, batches)
    if CHECKPOINT.value:
        model, params, config = published_model(CHECKPOINT.value)
        batches = {batch: real_regions(batch, FEATURES.value) for batch in sizes}
        rows += measure(pathlib.Path(CHECKPOINT.value).stem, model, params, config, batches)
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    app.run(main)

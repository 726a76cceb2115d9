r"""Reading features: every store, the pipeline and a plain loop side by side; memory over an epoch.

.venv/bin/python benchmarks/pipeline.py
.venv/bin/python benchmarks/pipeline.py --images=300 --epoch_images=113287

Three tables, all of one run and of files that the system has in its memory (what a disk adds is the
same for all):

1. images per second out of each store, in random order, and of `np.load` alone;
2. images per second of training batches (padded, with captions): a plain loop in the style of a
   PyTorch dataset with a collate function, and our pipeline, with and without its cache;
3. an epoch over a synthetic store of COCO's size: images per second, and the memory of the process
   at every tenth of it.
"""

import base64
import os
import pathlib
import tempfile
import time

import numpy as np
import psutil
from absl import app, flags
from synthetic import COCO_TRAIN, SyntheticStore, synthetic_records

from sparsecap_jax.data.cache import CachedStore
from sparsecap_jax.data.pipeline import make_train_iterator
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.data.stores.convert import convert

IMAGES = flags.DEFINE_integer("images", 300, "Images in each store.")
EPOCH_IMAGES = flags.DEFINE_integer("epoch_images", COCO_TRAIN, "Images of the epoch; 0: none.")
WIDTH = flags.DEFINE_integer("width", 2048, "Width of the features.")
BATCH = flags.DEFINE_integer("batch_size", 15, "Images in a batch.")
WORKERS = flags.DEFINE_integer("workers", 2, "Worker processes, and threads, to try; 0: none.")
SECONDS = flags.DEFINE_float("seconds", 3.0, "Least time of every measurement.")
CAPTIONS = ["a man riding a wave on top of a surfboard", "two dogs play in the snow", "a red bus"]


class LengthTokenizer:
    """Costs as little as possible, in both loops."""

    pad_id = 0

    def encode(self, text, max_length):
        """Return BOS, the length of each word, EOS."""
        return [2, *map(len, text.split()), 3][:max_length]


def write_stores(root, source):
    """The images of `source` in every layout; returns the path of each."""
    import h5py
    import lmdb

    paths = {name: root / name for name in ("npy", "npz", "tsv", "lmdb")}
    for path in (paths["npy"] / "cocobu_att", paths["npz"], paths["tsv"], paths["lmdb"]):
        path.mkdir(parents=True)
    paths["hdf5"] = root / "m2.hdf5"
    database = lmdb.open(str(paths["lmdb"] / "cocobu_att.lmdb"), map_size=2**36)
    with (
        h5py.File(paths["hdf5"], "w") as file,
        (paths["tsv"] / "f.tsv").open("w") as rows,
        database.begin(write=True) as transaction,
    ):
        for i in source.image_ids():
            features = source[i].features
            npy = paths["npy"] / f"cocobu_att/{i}.npy"
            np.save(npy, features)
            transaction.put(str(i).encode(), npy.read_bytes())
            np.savez(paths["npz"] / f"{i}.npz", x=features)
            file[f"{i}_features"] = features
            text = [base64.b64encode(a.tobytes()).decode() for a in (features[:, :4], features)]
            rows.write("\t".join(map(str, [i, 640, 480, len(features), *text])) + "\n")
    database.close()
    store = open_store(paths["npy"], WIDTH.value)
    for dtype in ("float32", "float16"):
        paths[f"array_record {dtype}"] = root / dtype
        convert(store, root / dtype, dtype=dtype, report=lambda _: None)
    return paths


def rate(read, ids):
    """Images per second of `read(image_id)`, in random order, after one pass."""
    order = np.random.default_rng(0).permutation(list(ids)).tolist()
    for image_id in order:
        read(image_id)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS.value:
        for image_id in order:
            read(image_id)
        count += len(order)
    return count / (time.perf_counter() - start)


def plain_batches(folder, records, tokenizer):
    """Training batches as a PyTorch dataset and its collate function make them."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(records))
        for start in range(0, len(order) - BATCH.value + 1, BATCH.value):
            chosen = [records[i] for i in order[start : start + BATCH.value]]
            features = [np.load(folder / f"cocobu_att/{r.image_id}.npy") for r in chosen]
            features = [array.astype("float32") for array in features]
            longest = max(map(len, features))
            padded = np.zeros((len(chosen), longest, WIDTH.value), np.float32)
            mask = np.zeros((len(chosen), longest), np.float32)
            for row, array in enumerate(features):
                padded[row, : len(array)] = array
                mask[row, : len(array)] = 1
            fc = np.stack([array.mean(0) for array in features])
            ids = [tokenizer.encode(c, 18) for r in chosen for c in r.captions]
            tokens = np.zeros((len(ids), max(map(len, ids))), np.int64)
            for row, caption in enumerate(ids):
                tokens[row, : len(caption)] = caption
            yield padded, mask, fc, tokens


def batch_rate(batches):
    """Images per second, from the third batch on."""
    for _ in range(2 + IMAGES.value // BATCH.value):  # an epoch: caches are full
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS.value:
        next(batches)
        count += BATCH.value
    return count / (time.perf_counter() - start)


def print_table(title, rates, base):
    print(f"\n{title}")
    for name, value in rates.items():
        print(f"{name:34s} {value:9,.0f} images/s  {value / rates[base]:5.2f} x {base}")


def measure_stores(paths, ids):
    rates = {"np.load": rate(lambda i: np.load(paths["npy"] / f"cocobu_att/{i}.npy"), ids)}
    for name, path in paths.items():
        store = open_store(path, WIDTH.value)
        rates[name] = rate(store.__getitem__, ids)
    cached = CachedStore(open_store(paths["npy"], WIDTH.value), min_free_ram=0.0)
    rates["npy, cached"] = rate(cached.__getitem__, ids)
    print_table("stores", rates, "np.load")


def measure_pipeline(paths, records):
    tokenizer = LengthTokenizer()
    rates = {"plain loop": batch_rate(plain_batches(paths["npy"], records, tokenizer))}
    kinds = {
        "npy": ("npy", {}, {}),
        "npy, cached": ("npy", {"min_free_ram": 0.0}, {}),
        "npy, cached in float16": ("npy", {"min_free_ram": 0.0, "dtype": "float16"}, {}),
        "array_record float32": ("array_record float32", {}, {}),
        "array_record float16": ("array_record float16", {}, {}),
    }
    for kind in ("threads", "workers") if WORKERS.value else ():
        options = {f"num_{kind}": WORKERS.value}
        kinds[f"npy, {WORKERS.value} {kind}"] = "npy", {}, options
    for name, (path, cache, options) in kinds.items():
        store = CachedStore(open_store(paths[path], WIDTH.value), **{"min_free_ram": 1.0} | cache)
        batches = make_train_iterator(
            records, store, tokenizer, batch_size=BATCH.value, max_seq_length=18, **options
        )
        rates[name] = batch_rate(batches)
        batches.close()
    print_table(f"training batches of {BATCH.value}", rates, "plain loop")


def measure_epoch(num_images):
    records = synthetic_records(num_images, CAPTIONS)
    store = CachedStore(SyntheticStore(num_images, WIDTH.value), max_bytes=2**30)
    batches = make_train_iterator(
        records, store, LengthTokenizer(), batch_size=BATCH.value, num_epochs=1
    )
    process, steps = psutil.Process(os.getpid()), batches.steps_per_epoch
    print(f"\nepoch of {num_images:,} images, 10 to 100 regions, cache of 1 GiB")
    start = time.perf_counter()
    for step, _ in enumerate(batches, start=1):
        if step % max(steps // 10, 1) == 0:
            seconds, gib = time.perf_counter() - start, process.memory_info().rss / 2**30
            print(
                f"{step / steps:4.0%} {step * BATCH.value / seconds:7,.0f} images/s, {gib:.2f} GiB"
            )
    batches.close()


def main(argv):
    del argv
    source = SyntheticStore(IMAGES.value, WIDTH.value, (36, 36))
    with tempfile.TemporaryDirectory() as folder:
        paths = write_stores(pathlib.Path(folder), source)
        records = synthetic_records(IMAGES.value, CAPTIONS)
        measure_stores(paths, source.image_ids())
        measure_pipeline(paths, records)
    if EPOCH_IMAGES.value:
        measure_epoch(EPOCH_IMAGES.value)


if __name__ == "__main__":
    app.run(main)

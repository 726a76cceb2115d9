"""How well photo features predict the words of the photos' captions, without training a captioner.

python benchmarks/photo_features.py --photos=data/flickr8k --features=features/a,features/b

A ridge regression from the features of all regions, or with `--fc` of the whole photo, to the share
of captions that hold each word, on the photos of the training and validation splits that all
folders hold. R2 is leave-one-out; the last column is what the folder gains over the first one, with
a 95% bootstrap interval over photos.
"""

import pathlib
from collections import Counter

import numpy as np
from absl import app, flags

PHOTOS = flags.DEFINE_string("photos", None, "Folder with captions.json.", required=True)
FEATURES = flags.DEFINE_list("features", None, "Folders that `extract` wrote.", required=True)
FC = flags.DEFINE_bool("fc", False, "Take the mean of the map alone, not all regions.")
MIN_PHOTOS = flags.DEFINE_integer("min_photos", 20, "Photos that a word must be of to count.")
LIMIT = flags.DEFINE_integer("limit", 4000, "Photos at most: the first ones by name.")
PENALTIES = np.logspace(-1, 2, 10)  # times the mean eigenvalue


def word_shares(records):
    """Return `[N, V]` shares of captions that hold each frequent word, centred."""
    bags = [Counter(w for text in r.captions for w in {*text.split()}) for r in records]
    counts = Counter(word for bag in bags for word in bag)
    words = sorted(word for word, count in counts.items() if count >= MIN_PHOTOS.value)
    rows = zip(records, bags, strict=True)
    shares = np.array([[bag[w] / len(r.captions) for w in words] for r, bag in rows], np.float32)
    return shares - shares.mean(axis=0)


def kernel(folder, records):
    """Return `[N, N]` products of the standardised features, summed over regions."""
    kind = "cocobu_fc" if FC.value else "cocobu_att"
    arrays = [np.atleast_2d(np.load(folder / kind / f"{r.image_id}.npy")) for r in records]
    total = np.zeros((len(records), len(records)), np.float32)
    for region in np.stack(arrays, axis=1):
        values = region.astype(np.float32)
        values -= values.mean(axis=0)
        values /= values.std(axis=0) + 1e-3 * values.std()
        total += values @ values.T
    return total


def squared_errors(products, words):
    """Return each photo's leave-one-out error for the best penalty, `[N]`."""
    sizes, vectors = np.linalg.eigh(products / np.trace(products) * len(products))
    projected, errors = vectors.T @ words, []
    for penalty in PENALTIES:
        shares = vectors * (sizes / (sizes + penalty))
        residuals = words - shares @ projected
        alone = 1 - np.einsum("nk,nk->n", shares, vectors)
        errors.append(np.square(residuals / alone[:, None]).sum(axis=1))
    return min(errors, key=np.sum)


def main(_):
    """Print the table."""
    from sparsecap_jax.data.datasets import load_splits

    folders = [pathlib.Path(folder) for folder in FEATURES.value]
    stored = [{path.stem for path in (f / "cocobu_att").glob("*.npy")} for f in folders]
    splits = load_splits("photos", PHOTOS.value)
    held = set.intersection(*stored)
    records = [r for r in [*splits["train"], *splits["val"]] if str(r.image_id) in held]
    records = sorted(records, key=lambda r: r.filename)[: LIMIT.value]
    words = word_shares(records)
    total, rng, first = np.square(words).sum(axis=1), np.random.default_rng(0), None
    print(f"{len(records)} photos, {words.shape[1]} words")
    for folder in folders:
        errors = squared_errors(kernel(folder, records), words)
        first = errors if first is None else first
        rows = rng.integers(0, len(records), (2000, len(records)))
        gains = (first - errors)[rows].sum(axis=1) / total[rows].sum(axis=1)
        low, high = np.percentile(gains, [2.5, 97.5])
        gain = (first - errors).sum() / total.sum()
        figures = f"{1 - errors.sum() / total.sum():.4f} | {gain:+.4f} ({low:+.4f} to {high:+.4f})"
        print(f"| {folder.name} | {figures} |", flush=True)


if __name__ == "__main__":
    app.run(main)

"""Figures of a toy dataset: scores of a perfect and of a blind captioner, vocabulary."""

import collections
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

CANDIDATES = 100  # training captions tried as the constant caption, besides the most frequent


def measure(directory: str | os.PathLike, split: str = "test") -> dict[str, Any]:
    """Measure the captions of a toy dataset.

    Args:
        directory: the dataset's folder.
        split: the split that is scored.

    Returns:
        "oracle": CIDEr of one caption of an image against its other four, averaged over the choice
        of the one: the score of perfect knowledge of the scene without knowing the speaker.
        "constant": CIDEr of the best among some training captions, given to every image, and
        "constant_caption" itself (chosen on the same split, which flatters the constant).
        "vocabulary": number of distinct words. "lengths": caption length -> number of captions.
        "words": the distinct words, most frequent first.
    """
    (path,) = pathlib.Path(directory).glob("dataset_*.json")
    images = json.loads(path.read_text())["images"]
    texts = {name: [] for name in ("train", "val", "test")}
    for image in images:
        texts[image["split"]].append([sentence["raw"] for sentence in image["sentences"]])
    references, everything = texts[split], [text for part in texts.values() for text in part]
    held_back = [
        _cider([texts[k] for texts in references], [t[:k] + t[k + 1 :] for t in references])
        for k in range(len(references[0]))
    ]
    # The most frequent captions, and some spread evenly over the training split.
    captions = [text for image in texts["train"] for text in image]
    frequent = [caption for caption, _ in collections.Counter(captions).most_common(20)]
    spread = captions[:: max(1, len(captions) // CANDIDATES)]
    constants = {
        caption: _cider([caption] * len(references), references)
        for caption in sorted({*frequent, *spread})
    }
    best = max(constants, key=constants.__getitem__)
    sentences = [text.split() for image in everything for text in image]
    words = collections.Counter(word for sentence in sentences for word in sentence)
    return {
        "oracle": sum(held_back) / len(held_back),
        "constant": constants[best],
        "constant_caption": best,
        "vocabulary": len(words),
        "lengths": dict(sorted(collections.Counter(map(len, sentences)).items())),
        "words": [word for word, _ in words.most_common()],
    }


def _cider(captions: list[str], references: list[list[str]]) -> float:
    """Return CIDEr (0 to 10) of one caption per image, with words between blanks."""
    from pycocoevalcap.cider.cider import Cider

    truth = dict(enumerate(references))
    score, _ = Cider().compute_score(truth, {k: [text] for k, text in enumerate(captions)})
    return float(score)


def print_report(directory: str | os.PathLike, manifest: Mapping[str, Any]) -> None:
    """Print the figures of `measure`, and the checksum in the manifest of the dataset."""
    figures = measure(directory)
    print(f"sizes             {manifest['sizes']}, seed {manifest['seed']}")
    print(f"checksum          {manifest['checksum']}")
    print(f"oracle CIDEr      {figures['oracle']:.3f}")
    print(f"constant CIDEr    {figures['constant']:.3f}  ({figures['constant_caption']})")
    print(f"vocabulary        {figures['vocabulary']} words")
    total = sum(figures["lengths"].values())
    for length, count in figures["lengths"].items():
        print(f"  {length:2d} words        {100 * count / total:5.1f}%")

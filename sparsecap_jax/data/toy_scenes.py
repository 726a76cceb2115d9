r"""The embedded dataset: small drawn scenes with region features and captions, made in seconds.

    python -m sparsecap_jax.data.toy_scenes --directory=DIR [--sizes=2000,200,200] [--seed=0]

DIR then has the layout of COCO with bottom-up features, so that everything that reads COCO reads
it: `dataset_toy.json` (Karpathy split), `bu/cocobu_att/ID.npy` float16 `[R, 2048]`,
`bu/cocobu_fc/ID.npy` float32 `[2048]`, `bu/cocobu_box_relative/ID.npy` float32 `[R, 4]`, and
`images/ID.png`. With `--report` its figures are measured and printed as well.
"""

import collections
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.arrays import to_npy
from sparsecap_jax.data.records import SPLITS
from sparsecap_jax.data.toy_drawing import draw_scene
from sparsecap_jax.data.toy_grammar import caption_scene, near_caption, plain_caption
from sparsecap_jax.data.toy_regions import scene_features
from sparsecap_jax.data.toy_world import Draws, sample_scene
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import named_errors, read_json

VERSION = 2  # raise it whenever a scene, caption or feature changes
SIZES = (2000, 200, 200)  # images of train, val, test
CAPTIONS_PER_IMAGE = 5
CANDIDATES = 100  # training captions tried as the constant caption, besides the most frequent
INDEX, MANIFEST = "dataset_toy.json", "manifest.json"
_ENTRIES = {INDEX, MANIFEST, "bu", "images"}


def make_toy_scenes(
    directory: str | os.PathLike,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    boxes_only: bool = False,
    plain: bool = False,
    near: bool = False,
) -> pathlib.Path:
    """Make the toy dataset, unless it exists already.

    The same version, sizes and seed give the same captions, features and boxes, bit for bit, on
    every machine. Scenes are numbered through train, val and test. A finished dataset of these
    settings is left as it is; one of other settings, or damaged, is replaced, all or nothing.

    Args:
        directory: a new or empty folder, or one that this function made.
        sizes: numbers of images in train, val and test.
        seed: which family of scenes, 0 <= seed < 2**64.
        boxes_only: whether boxes alone show places, see `scene_features`.
        plain: whether each scene has one plain caption instead of several drawn ones.
        near: the same, of scenes with three or four groups; captions name what is nearest to the
            first.

    Returns:
        The absolute path of `directory`.

    Raises:
        ConfigError: `sizes` or `seed` out of range, or captions both `plain` and `near`.
        DataError: `directory` holds anything else.
    """
    settings = _settings(sizes, seed, boxes_only=boxes_only, plain=plain, near=near)
    directory = pathlib.Path(directory).resolve()
    if _is_complete(directory, settings):
        return directory
    _check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    for leftover in directory.parent.glob(f".{directory.name}.partial-*"):
        with contextlib.suppress(BlockingIOError), _temporary(leftover, fcntl.LOCK_NB):
            pass  # its maker was killed
    partial = directory.with_name(f".{directory.name}.partial-{uuid.uuid4().hex}")
    partial.mkdir()
    with named_errors(directory), _temporary(partial):
        checksum = _write(partial, settings)
        manifest = {**settings, "checksum": checksum, "files": _listing(partial)}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if not _is_complete(directory, settings):  # else another process was faster
            replaced = partial.with_name(f"{partial.name}-replaced")
            if directory.is_dir():
                os.replace(directory, replaced)
            os.replace(partial, directory)
            shutil.rmtree(replaced, ignore_errors=True)
    return directory


@contextlib.contextmanager
def _temporary(folder: pathlib.Path, lock: int = 0) -> Iterator[None]:
    """Lock a folder while the block runs, then remove it unless it was renamed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | lock)
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def read_manifest(directory: str | os.PathLike) -> dict[str, Any] | None:
    """Return the content of DIR/manifest.json, or None where there is no manifest of toy scenes."""
    try:
        manifest = read_json(pathlib.Path(directory) / MANIFEST)
    except DataError:
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("dataset") == "toy" else None


def _settings(sizes: Sequence[int], seed: int, **options: bool) -> dict[str, Any]:
    """Return the checked settings of a dataset, without options that are off."""
    sizes = [int(size) for size in sizes]
    if len(sizes) != len(SPLITS) or min(sizes) < 0 or not 0 < sum(sizes) < 2**31:
        raise ConfigError(f"sizes: expected three counts of images, one positive, found {sizes}")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed: expected 0 <= seed < 2**64, found {seed}")
    if options["plain"] and options["near"]:
        raise ConfigError("plain, near: captions are either; expected one of them")
    settings = {"dataset": "toy", "version": VERSION, "sizes": sizes, "seed": seed}
    return settings | {name: True for name, chosen in options.items() if chosen}


def _write(directory: pathlib.Path, settings: dict[str, Any]) -> str:
    """Write everything but the manifest; return the SHA-256 of captions, features and boxes."""
    for folder in ("bu/cocobu_att", "bu/cocobu_fc", "bu/cocobu_box_relative", "images"):
        (directory / folder).mkdir(parents=True)
    digest, images = hashlib.sha256(), []
    for number, split in enumerate(np.repeat(SPLITS, settings["sizes"]).tolist()):
        images.append(_write_image(directory, settings, number, split, digest))
    text = json.dumps({"images": images, "dataset": "toy"})
    (directory / INDEX).write_text(text)
    digest.update(text.encode())
    return digest.hexdigest()


def _write_image(
    directory: pathlib.Path, settings: dict[str, Any], number: int, split: str, digest: Any
) -> dict[str, Any]:
    """Write features and picture of one scene; return its entry of the split JSON."""
    seed, near = settings["seed"], settings.get("near", False)
    scene = sample_scene(seed, number, near)
    draws = Draws(seed, number, purpose=2)
    features, boxes = scene_features(scene, draws, settings.get("boxes_only", False))
    # Multiples of 1/512 below 4: the sum is exact in any order, the quotient rounds once.
    fc = features.sum(axis=0, dtype=np.float32) / np.float32(len(features))
    image_id, filename = number + 1, f"{number + 1}.png"
    for folder, array in (("att", features), ("fc", fc), ("box_relative", boxes)):
        path = directory / "bu" / f"cocobu_{folder}" / f"{image_id}.npy"
        path.write_bytes(to_npy(array))
        digest.update(array.tobytes())
    draw_scene(scene, number).save(directory / "images" / filename, compress_level=3)
    draws = Draws(seed, number, purpose=1)
    if near or settings.get("plain"):
        captions = [near_caption(scene) if near else plain_caption(scene)]
    else:
        captions = [caption_scene(scene, draws) for _ in range(CAPTIONS_PER_IMAGE)]
    sentences = [
        {"tokens": words, "raw": " ".join(words), "imgid": number, "sentid": sentid}
        for sentid, words in enumerate(captions, start=number * CAPTIONS_PER_IMAGE)
    ]
    sentids = [sentence["sentid"] for sentence in sentences]
    return {
        **{"filepath": "images", "sentids": sentids, "filename": filename, "imgid": number},
        **{"split": split, "sentences": sentences, "cocoid": image_id},
    }


def _listing(directory: pathlib.Path) -> str:
    """Return the SHA-256 of names and sizes of all files but the manifest: it shows damage."""
    folders = [directory / "images", *sorted((directory / "bu").glob("*"))]
    files = [directory / INDEX, *(path for folder in folders for path in folder.iterdir())]
    lines = [f"{os.path.relpath(file, directory)} {file.stat().st_size}\n" for file in files]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _is_complete(directory: pathlib.Path, settings: dict[str, Any]) -> bool:
    """Return whether `directory` holds a finished dataset of these settings, undamaged."""
    manifest = read_manifest(directory) or {}
    checksum = manifest.get("checksum")
    try:
        return manifest == {**settings, "checksum": checksum, "files": _listing(directory)}
    except OSError:  # a whole folder or the index is lost
        return False


def _check_replaceable(directory: pathlib.Path) -> None:
    """Raise a DataError unless `directory` is absent, empty or nothing but a toy dataset."""
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory}: expected a folder, found a file")
    files = set(os.listdir(directory)) if directory.is_dir() else set()
    foreign = files if read_manifest(directory) is None else files - _ENTRIES
    if foreign:
        raise DataError(
            f"{directory}: expected a new or empty folder or a toy dataset, found other files "
            f"in it: {', '.join(sorted(foreign)[:5])}"
        )


def measure(directory: str | os.PathLike, split: str = "test") -> dict[str, Any]:
    """Measure the captions of the toy dataset in `directory`, and score those of `split`.

    Returns:
        "oracle": CIDEr of one caption of an image against its other four, averaged over the choice
        of the one: the score of perfect knowledge of the scene without knowing the speaker.
        "constant": CIDEr of the best among some training captions, given to every image, and
        "constant_caption" itself (chosen on the same split, which flatters the constant).
        "vocabulary": number of distinct words. "lengths": caption length -> number of captions.
        "words": the distinct words, most frequent first.
    """
    texts: dict[str, list[list[str]]] = {name: [] for name in SPLITS}
    for image in json.loads((pathlib.Path(directory) / INDEX).read_text())["images"]:
        texts[image["split"]].append([sentence["raw"] for sentence in image["sentences"]])
    references, everything = texts[split], [text for part in texts.values() for text in part]
    held_back = [
        _cider([texts[k] for texts in references], [t[:k] + t[k + 1 :] for t in references])
        for k in range(len(references[0]))
    ]
    # The most frequent captions, and some spread evenly over the training split.
    captions = list(itertools.chain(*texts["train"]))
    frequent = [caption for caption, _ in collections.Counter(captions).most_common(20)]
    tried = sorted({*frequent, *captions[:: max(1, len(captions) // CANDIDATES)]})
    constants = {text: _cider([text] * len(references), references) for text in tried}
    best = max(constants, key=constants.__getitem__)
    sentences = [text.split() for image in everything for text in image]
    words = collections.Counter(itertools.chain(*sentences))
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


def print_report(directory: str | os.PathLike) -> None:
    """Print what `measure` finds, and the checksum of the dataset."""
    figures = measure(directory)
    manifest: Any = read_manifest(directory)
    print(f"sizes             {manifest['sizes']}, seed {manifest['seed']}")
    print(f"checksum          {manifest['checksum']}")
    print(f"oracle CIDEr      {figures['oracle']:.3f}")
    print(f"constant CIDEr    {figures['constant']:.3f}  ({figures['constant_caption']})")
    print(f"vocabulary        {figures['vocabulary']} words")
    total = sum(figures["lengths"].values())
    for length, count in figures["lengths"].items():
        print(f"  {length:2d} words        {100 * count / total:5.1f}%")


def _main(_: Sequence[str]) -> None:
    from absl import flags

    values = flags.FLAGS
    directory = make_toy_scenes(values.directory, [int(s) for s in values.sizes], values.seed)
    print(directory)
    if values.report:
        print_report(directory)


if __name__ == "__main__":
    # Flags are global: defined only here, so that importing this module claims no names.
    from absl import app, flags

    flags.DEFINE_string("directory", None, "Where to make the dataset.", required=True)
    flags.DEFINE_list("sizes", list(map(str, SIZES)), "Images in train, val and test.")
    flags.DEFINE_integer("seed", 0, "Which family of scenes.", lower_bound=0)
    flags.DEFINE_boolean("report", False, "Measure and print the figures of the dataset.")
    app.run(_main)

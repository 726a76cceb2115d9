"""Readers of photos, and of what extractors leave behind."""

import pathlib
from unittest import mock

import numpy as np
from fuzz_reader import reader
from PIL import Image

from sparsecap_jax.captioning import attention_plot
from sparsecap_jax.captioning.batches import Caption
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.files import read_bytes, read_json, write_json
from sparsecap_jax.photos import efficientnet_lite, extract
from sparsecap_jax.photos.extractors import EXTRACTORS, remake_extractor
from sparsecap_jax.photos.images import open_photo
from sparsecap_jax.torch_files import save_torch_file

Image.init()
_SAVED = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}


_PICTURES = {"a.png": "RGBA", "b.jpg": "RGB", "c.png": "I;16", "d.png": "P", "e.gif": "P"}
_PICTURES |= {f"{suffix}.{suffix}": "RGB" for suffix in ("webp", "bmp", "tiff", "avif")}
_PICTURES = {name: mode for name, mode in _PICTURES.items() if pathlib.Path(name).suffix in _SAVED}


def _photos(folder):
    folder.mkdir(exist_ok=True)
    for name, mode in _PICTURES.items():
        Image.new(mode, (40, 30)).save(folder / name)


@reader("photos", make=_photos)
def _read_photos(folder):
    """Read all photos, also after one that cannot be read."""
    faults = []
    for name in _PICTURES:
        try:
            open_photo(folder / name)
        except DataError as error:
            faults.append(error)
    if faults:
        raise faults[0]


@reader("photo_bytes", make=_photos)
def _read_photo_bytes(folder):
    """Read the bytes of a photo, as the service does."""
    path = folder / "b.jpg"
    content = read_bytes(path, "a photo", max_bytes=10**7)
    try:
        return open_photo(content, max_pixels=10**7)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


@reader("picture", make=_photos)
def _read_picture(folder):
    boxes = np.float32([[0, 0, 1, 1]])
    caption = Caption("dog", 0.0, (1,), 0.0, attention=np.ones((1, 1), np.float32))
    return attention_plot.attention_picture(folder / "x.png", caption, boxes, folder / "a.png")


def _extracted(folder):
    (folder / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (8, 6)).save(folder / "photos" / name)
    settings = {"extractor": "none", "half": False}
    write_json(folder / "features/extractor.json", settings)


class _Means:
    """An extractor of one region: the mean colour."""

    feature_size = 3
    settings = {"extractor": "none"}  # noqa: RUF012

    def __call__(self, photos):
        means = [np.asarray(photo, np.float32).mean((0, 1))[None] for photo in photos]
        boxes = np.float32([[0, 0, 1, 1]])
        return [RegionFeatures(mean, boxes, mean[0]) for mean in means]


@reader("extraction", errors=(ConfigError, DataError), make=_extracted)
def _read_extraction(folder):
    output = folder / "features"
    return extract.extract_folder(folder / "photos", output, _Means(), report=lambda line: None)


for name in EXTRACTORS:

    @reader(
        f"extractor:{name}",
        errors=(ConfigError, DataError),
        make=lambda folder, name=name: write_json(folder / "extractor.json", {"extractor": name}),
    )
    def _read_extractor(folder):
        path = folder / "extractor.json"
        content = read_json(path)
        try:
            return remake_extractor(content, path)
        except ConfigError as error:
            if "not installed" not in str(error):  # torchvision, which is optional
                raise


# A network of one block and a few features.
_narrow = mock.patch.multiple(
    efficientnet_lite,
    FEATURES=3,
    block_shapes=lambda network: [efficientnet_lite.BlockShape(3, 1, 1, 2)],
)


@_narrow
def _lite0(folder):
    tensors = {"_fc.weight": np.ones((1000, 3), np.float32), "_fc.bias": np.ones(1000, np.float32)}
    convolutions = {"_conv_stem": (32, 3, 3, 3), "_blocks.0._depthwise_conv": (32, 1, 3, 3)}
    convolutions |= {"_blocks.0._project_conv": (2, 32, 1, 1), "_conv_head": (3, 2, 1, 1)}
    norms = "_bn0", "_blocks.0._bn1", "_blocks.0._bn2", "_bn1"
    for norm, (name, shape) in zip(norms, convolutions.items(), strict=True):
        tensors[f"{name}.weight"] = np.ones(shape, np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = np.ones(shape[0], np.float32)
    save_torch_file(folder / "lite0.pth", tensors)


@reader("lite0_weights", errors=(CheckpointError,), make=_lite0)
@_narrow
def _read_lite0(folder):
    return efficientnet_lite.load_params("lite0", folder / "lite0.pth")

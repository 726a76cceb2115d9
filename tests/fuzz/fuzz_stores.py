"""Readers of tokenizers, and of features in every format."""

import functools
import shutil

import store_files
from dataset_files import karpathy_image
from fuzz_reader import PHOTOS, WIDTH, WORDS, reader
from PIL import Image

from sparsecap_jax.data.stores import (
    array_records,
    convert,
    load_image_sizes,
    open_store,
    stated_width,
)
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.evaluation import (
    ptb_java,
)
from sparsecap_jax.files import write_json
from sparsecap_jax.tokenizers import TOKENIZERS, make_tokenizer, read_captions, train_tokenizer


def _tokenizer(folder, name):
    size = 40 if name != "char" else 30
    options = {"radix_base": 7} if name == "radix" else {}
    train_tokenizer(name, WORDS, folder / "tokenizer", vocab_size=size, **options)


for name in TOKENIZERS:

    @reader(
        f"tokenizer:{name}",
        errors=(ConfigError, DataError),
        make=functools.partial(_tokenizer, name=name),
    )
    def _read_tokenizer(folder, name=name):
        tokenizer = make_tokenizer(name, folder / "tokenizer")
        ids = tokenizer.encode("a big dog", 10)
        return tokenizer.decode(ids), tokenizer.pieces("a big dog")


@reader("caption_lines", make=lambda folder: text_file(folder / "captions.txt", "a dog\nein Bär\n"))
def _read_caption_lines(folder):
    return read_captions(folder / "captions.txt"), ptb_java._read(str(folder / "captions.txt"))


def text_file(path, text):
    path.write_text(text, encoding="utf-8")


def _array_record(folder):
    store_files.write_npy(folder / "source", PHOTOS)
    store = open_store(folder / "source", WIDTH, True)
    convert.convert(store, folder / "features", report=lambda line: None)
    shutil.rmtree(folder / "source")


def _sources(folder):
    """Write the folder that tensorflow-datasets prepares from."""
    store_files.write_lxmert(folder / "features", PHOTOS)
    images = [karpathy_image(image_id, "train") for image_id in PHOTOS]
    write_json(folder / "dataset_coco.json", {"images": images})


def _tfds(folder):
    import tensorflow_datasets as tfds

    from sparsecap_jax.data.coco_builder import CaptionConfig, CaptionFeatures

    _sources(folder / "manual")
    config = CaptionConfig(features="features", feature_size=WIDTH, boxes=True)
    builder = CaptionFeatures(data_dir=str(folder / "data"), config=config)
    download = tfds.download.DownloadConfig(manual_dir=str(folder / "manual"))
    builder.download_and_prepare(download_config=download)
    shutil.move(builder.data_dir, folder / "features")
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / "manual")


def _layout(folder, name):
    store_files.LAYOUTS[name](folder / "features", PHOTOS)


_WRITERS = {
    f"{kind}:{name}": functools.partial(_layout, name=name)
    for name, kind in store_files.FORMATS.items()
}
_WRITERS |= {"array_record": _array_record, "tfds": _tfds}
for name, write in _WRITERS.items():

    @reader(f"store:{name}", make=write)
    def _read_store(folder, kind=name):
        path, (kind, _, _) = folder / "features", kind.partition(":")
        if kind == "hdf5":
            path = path / "coco_detections.hdf5"
        sizes = store_files.sizes_of(PHOTOS)
        store = open_store(path, WIDTH, True, sizes=sizes, format=kind)
        for image_id in store.image_ids():
            store.num_regions(image_id)
        return [store[image_id] for image_id in store.image_ids()]


def _conversion(folder):
    """Write a conversion that was interrupted after its last shard."""
    store_files.write_npy(folder / "source", PHOTOS)
    store = open_store(folder / "source", WIDTH, True)
    manifest = convert.convert(store, folder / "features", report=lambda line: None)
    (folder / "features" / array_records.MANIFEST).unlink()
    shard = {"plan": manifest["plan"], **manifest["shards"][0]}
    write_json((folder / "features" / shard["file"]).with_suffix(".json"), shard)


# It writes too: see `caption_stream`.
@reader("conversion", errors=(ConfigError, DataError, OSError), make=_conversion)
def _read_conversion(folder):
    store = open_store(folder / "source", WIDTH, True, format="npy")
    convert.convert(store, folder / "features", report=lambda line: None)
    return convert.verify(folder / "features")


def _widths(folder):
    _array_record(folder)
    store_files.write_npy(folder / "npy", PHOTOS)


@reader("feature_width", make=_widths)
def _read_widths(folder):
    return [stated_width(folder / name) for name in ("features", "npy")]


def _sizes(folder):
    images = [{"id": 42, "width": 9, "height": 8}, {"id": "b", "width": 7, "height": 6}]
    write_json(folder / "coco.json", {"images": images})
    write_json(folder / "plain.json", {"42": [9, 8], "b": [7, 6]})
    (folder / "pictures").mkdir()
    Image.new("RGB", (9, 8)).save(folder / "pictures/42.png")


@reader("image_sizes", make=_sizes)
def _read_sizes(folder):
    return [load_image_sizes(folder / name) for name in ("coco.json", "plain.json", "pictures")]

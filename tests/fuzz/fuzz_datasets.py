"""Readers of datasets."""

import functools

import numpy as np
from dataset_files import karpathy_image
from fuzz_reader import reader
from fuzz_stores import text_file

from sparsecap_jax.data import imagined, toy_scenes
from sparsecap_jax.data.datasets import DATASETS, load_splits, stated_licence
from sparsecap_jax.data.records import Record
from sparsecap_jax.files import write_json


def karpathy_files(folder, name="dataset_x.json"):
    splits = enumerate(["train", "restval", "val", "test"])
    images = [karpathy_image(number, split, cocoid=number) for number, split in splits]
    write_json(folder / name, {"images": images, "dataset": "toy"})


def coco_files(folder):
    for split, first in (("train2014", 0), ("val2014", 10), ("test2014", 20)):
        images = [
            {"id": first + i, "file_name": f"{i}.jpg", "width": 9, "height": 8} for i in range(2)
        ]
        notes = [{"image_id": first + i % 2, "caption": "A dog."} for i in range(3)]
        write_json(folder / f"captions_{split}.json", {"images": images, "annotations": notes})
    text_file(folder / "val_ids.txt", "10\nCOCO_val2014_000000000011.jpg\n")


def _coco_online(folder):
    karpathy_files(folder)
    write_json(folder / "image_info_test2014.json", {"images": [{"id": 5, "file_name": "5.jpg"}]})


def _flickr8k(folder):
    lines = [f"{name}.jpg#{n}\tA {name} {n} ." for name in "abcd" for n in range(2)]
    text_file(folder / "Flickr8k.token.txt", "\n".join(lines))
    for split, name in (("train", "c"), ("dev", "a"), ("test", "b")):
        text_file(folder / f"Flickr_8k.{split}Images.txt", f"{name}.jpg\n")


def _instapic(folder):
    content = {"user": {"post": {"caption": "Sun #1", "tags": ["sun"]}, "two": {"caption": "A b"}}}
    write_json(folder / "insta-caption-train.json", content)
    write_json(folder / "insta-caption-test1.json", {"other": {"post": {"caption": "Sea"}}})


def photo_folder(folder):
    image = {"filename": "a.jpg", "split": "dev", "captions": ["A dog.", "Ein Bär"]}
    write_json(folder / "captions.json", {"images": [image, {**image, "filename": "b.jpg"}]})


def _imagined(folder):
    rng = np.random.default_rng(0)
    arrays = {"mean": (2, 3), "residuals": (4, 2, 3), "slopes": (2, 2, 3), "boxes": (2, 4)}
    arrays = {key: rng.random(shape).astype(np.float32) for key, shape in arrays.items()}
    imagined.save(
        folder / imagined.IMAGINED, imagined.Imagination({"a": 1.0, "dog": 0.5}, **arrays)
    )
    splits = {"train": [["a", "a.jpg", ["a dog"], ["A dog."]]], "val": [], "test": []}
    write_json(folder / imagined.PHOTOS, {"main": splits})
    write_json(folder / imagined.TEXT, {"text": splits})


_DATASETS = {
    "coco_json": coco_files,
    "coco_online": _coco_online,
    "flickr8k": _flickr8k,
    "imagined": _imagined,
    "instapic": _instapic,
    "karpathy": karpathy_files,
    "photos": photo_folder,
    "tfds": functools.partial(karpathy_files, name="metadata.json"),
}
_DATASETS |= {name: karpathy_files for name in DATASETS if name.startswith("toy")}

for name, make in _DATASETS.items():

    @reader(f"dataset:{name}", make=make)
    def _read_dataset(folder, name=name):
        for options in ({"skip_bad": True}, {"text": "raw"}):
            splits = load_splits(name, folder, **options)
            records = [record for split in splits.values() for record in split]
            assert all(isinstance(record, Record) for record in records)
            ids = {record.image_id for record in records}
            assert len(ids) == len(records) or name == "imagined"  # which may repeat its sources
            assert all(".." not in record.filename.split("/") for record in records)


def _licences(folder):
    text_file(folder / "captions.json", '{"licence": "CC BY 4.0", "images": []}')
    text_file(folder / "dataset_coco.json", '{"license": "Ö", "images": []}')


@reader("licences", make=_licences)
def _read_licences(folder):
    return [stated_licence({"name": n, "dir": str(folder)}) for n in ("photos", "karpathy")]


def _manifest(folder):
    write_json(folder / "manifest.json", {"dataset": "toy", "version": 1})


@reader("toy_manifest", make=_manifest)
def _read_toy_manifest(folder):
    return toy_scenes.read_manifest(folder)


def _id_list(folder):
    karpathy_files(folder)
    text_file(folder / "test2014_ids.txt", "5\n6.jpg\n")


@reader("id_list", make=_id_list)
def _read_id_list(folder):
    return load_splits("coco_online", folder)

"""Every reader of the package: whole files for it, and a call that reads all of them.

`READERS` must cover the registries of stores, datasets, tokenizers and extractors, and every
function of the package that opens a file; `test_fuzz.py` checks both.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import pickle
import shutil
import tempfile
from collections.abc import Callable
from unittest import mock

import captioner_runs
import jax
import jax.numpy as jnp
import numpy as np
import store_files
from absl import flags
from dataset_files import karpathy_image
from flax.traverse_util import flatten_dict
from PIL import Image

from sparsecap_jax import models
from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning import attention_plot, stream
from sparsecap_jax.captioning.batches import Caption
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.commands import report, search_flags
from sparsecap_jax.commands.convert import export_reference, import_reference
from sparsecap_jax.data import imagined, toy_scenes
from sparsecap_jax.data.datasets import DATASETS, load_splits
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.data.records import Record
from sparsecap_jax.data.stores import array_records, convert, load_image_sizes, open_store
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError, SparsecapError
from sparsecap_jax.evaluation import (
    caption_files,
    collection_plots,
    plots,
    ptb_java,
    result_files,
    score_files,
    sparsity_report,
)
from sparsecap_jax.evaluation.collected import table_rows
from sparsecap_jax.experiments import sweep_tables
from sparsecap_jax.files import read_json, write_json, write_table
from sparsecap_jax.interop import reference
from sparsecap_jax.interop.df_pickle import load_df_pickle
from sparsecap_jax.model_files import FORMS, ModelFile, write_model
from sparsecap_jax.photos import efficientnet_lite, extract, extractors
from sparsecap_jax.photos.extractors import EXTRACTORS, remake_extractor
from sparsecap_jax.photos.images import open_photo
from sparsecap_jax.pruning.step import PruneState, TrainState
from sparsecap_jax.runs import checkpoints, directory, live_summary, logs
from sparsecap_jax.runs.collection import read_run
from sparsecap_jax.runs.config import default_config
from sparsecap_jax.runs.directory import load_raw_variables, load_run, save_model
from sparsecap_jax.runs.run import Run, _note_extractor, check_workdir
from sparsecap_jax.runs.weights import load_weights, save_safetensors, save_weights
from sparsecap_jax.scst.document_frequency import DocumentFrequency, count_documents
from sparsecap_jax.tokenizers import TOKENIZERS, make_tokenizer, read_captions, train_tokenizer
from sparsecap_jax.torch_files import SparseTensor, load_torch_file, save_torch_file

TESTS = pathlib.Path(__file__).resolve().parents[1]
WIDTH = 6
PHOTOS = store_files.random_photos({42: 3, 7: 2, 391895: 5}, WIDTH)
WORDS = captioner_runs.WORDS
Image.init()
_SAVED = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        make: writes whole files into a folder.
        read: reads a folder of such files.
        errors: what it may raise.
        slower: how many times fewer mutations it gets than others.
    """

    make: Callable[[pathlib.Path], None]
    read: Callable[[pathlib.Path], object]
    errors: tuple[type[Exception], ...] = (DataError,)
    slower: int = 1


READERS: dict[str, Reader] = {}
_CONFIG = default_config()


def reader(name, *, errors=(DataError,), slower=1, make=None):
    """Register the decorated function, which reads a folder, under a name."""

    def register(read):
        READERS[name] = Reader(make, read, errors, slower)
        return read

    return register


# --- Weights and runs


def _leaves():
    """Return params and masks of which every form has something to store."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(12, 9)).astype(np.float32)
    mask = (rng.random((12, 9)) > 0.7).astype(np.float32)
    params = {"layer": {"kernel": kernel * mask, "bias": np.ones(9, np.float32)}}
    return params, {"layer": {"kernel": mask}}


def _weights(folder, **options):
    save_weights(folder / "weights.npz", *_leaves(), **options)


def _load_weights(folder):
    return load_weights(folder / "weights.npz")


for kind, options in (("plain", {}), ("compact", {"compact": True})):
    make = functools.partial(_weights, **options)
    READERS[f"weights:{kind}"] = Reader(make, _load_weights, (CheckpointError,))


def _model_file(folder, form):
    params, masks = _leaves()
    write_model(
        folder / "model.scap",
        *(
            {"/".join(path): leaf for path, leaf in flatten_dict(t).items()}
            for t in (params, masks)
        ),
        form=form,
        notes={"config": {"a": 1}},
        files={"tokenizer/word.model": b"abc" * 50},
    )


def _read_model_file(folder):
    with ModelFile(folder / "model.scap") as file:
        file.files()
    return load_weights(folder / "model.scap")


for form in FORMS:
    make = functools.partial(_model_file, form=form)
    READERS[f"model_file:{form}"] = Reader(make, _read_model_file, (CheckpointError,))


def _safetensors(folder):
    params, masks = _leaves()
    params["layer"]["kernel"][:3] = 0  # some of them kept
    save_safetensors(folder / "weights.safetensors", params, masks)


@reader("safetensors", errors=(CheckpointError,), make=_safetensors)
def _read_safetensors(folder):
    return load_weights(folder / "weights.safetensors")


def _run_file(folder):
    with tempfile.TemporaryDirectory() as temporary:
        run = load_run(captioner_runs.make_run(pathlib.Path(temporary, "run")))
    extractor = {"extractor": "lite0", "size": 64, "half": False}
    run = dataclasses.replace(run, extractor=extractor, search={"beam_size": 3})
    save_model(folder / "model.scap", run, "int8")


@reader(
    "run:model_file",
    errors=(CheckpointError, ConfigError, DataError),
    slower=20,
    make=_run_file,
)
def _read_run_file(folder):
    return Captioner.load(folder / "model.scap")


def _run(folder, model="up_down"):
    captioner_runs.make_run(folder / "run", model)
    write_json(folder / "run/extractor.json", {"extractor": "lite0", "size": 64, "half": False})
    write_json(folder / "run/search.json", {"beam_size": 3, "length_penalty": "wu_0.2"})


for model in captioner_runs.SIZES:

    @reader(
        f"run:{model}",
        errors=(CheckpointError, ConfigError, DataError),
        make=functools.partial(_run, model=model),
    )
    def _read_run(folder):
        return Captioner.load(folder / "run")


def _checkpoints(folder):
    """Write checkpoints of a small state, without training."""
    params = {"a": {"kernel": jnp.ones((4, 3))}, "b": jnp.zeros(2)}
    masks = {"a": {"kernel": jnp.ones((4, 3))}}
    state = PruneState(masks, {})
    rng = jax.random.key(0)
    with contextlib.closing(checkpoints.Checkpoints(folder / "run")) as saved:
        for step in (1, 2):
            whole = TrainState(jnp.int32(step), params, state, {"m": jnp.ones(3)}, rng)
            saved.save(whole, score=float(step), data={"epoch": 1}, info={})


@reader("checkpoints", errors=(CheckpointError,), make=_checkpoints)
def _read_checkpoints(folder):
    return load_raw_variables(folder / "run")


def _logs(folder):
    (folder / "train.csv").write_text("step,loss,sparsity\n1,2.5,\n2,2.25,0.5\n")
    write_json(folder / "summary.json", {"step": 2, "best_step": None, "CIDEr": 0.5})
    _weights(folder)


@reader("logs", make=_logs)
def _read_logs(folder):
    run = object.__new__(Run)
    vars(run).update(workdir=folder, config=_CONFIG, total_steps=9, steps_per_epoch=3)
    with contextlib.closing(logs.Logs(run, 1)) as opened:
        opened.write("train", 2, {"another": 1.0})
    return plots.table_column(folder / "train.csv", "sparsity")


def _finished(folder):
    _logs(folder)
    captioner_runs.make_run(folder)


@reader("report", errors=(CheckpointError, ConfigError, DataError), make=_finished)
def _read_report(folder):
    return report.report_run(folder, lambda line: None)


def _collected(folder):
    _finished(folder)
    text = {"words": 8.5, "vocabulary": 7, "coverage": 0.5, "copied": 0.25}
    write_json(folder / "test_beam_2/scores.json", {"CIDEr": 0.5, "METEOR": None, "text": text})
    _text(folder / "validation.csv", "step,CIDEr\n1,0.25\n2,0.5\n")
    _text(folder / "train.csv", "step,images_per_second,sparsity\n1,100.5,0.25\n2,101,0.5\n")
    _text(folder / "sparsity.csv", "step,embed/embedding\n1,0.5\n2,0.75\n")
    scores = {"test_beam_3": {"0009": {"CIDEr": 0.5}}, "val_beam_1": {"0009": {"CIDEr": 0.25}}}
    write_json(folder / "imported.json", {"scores": scores})


def _collected_early(folder):
    """Write what is there while a run trains."""
    _collected(folder)
    for name in ("summary.json", "model.scap"):
        (folder / name).unlink()


for kind, make in (("", _collected), (":unfinished", _collected_early)):

    @reader(f"collected{kind}", errors=(CheckpointError, ConfigError, DataError), make=make)
    def _read_collected(folder):
        run = read_run(folder, "x")
        collection_plots.tensor_curves(run)
        return table_rows([run])


@reader(
    "collected:model_file",
    errors=(CheckpointError, ConfigError, DataError),
    slower=20,
    make=_run_file,
)
def _read_collected_file(folder):
    return read_run(folder / "model.scap", "x")


def _reference_results(folder):
    settings = {"caption_model": "up_down_lstm_prune", "prune_type": "supermask"}
    settings |= {"prune_sparsity_target": 0.5, "tokenizer": "word", "vocab_size": 9}
    write_json(folder / "config.json", settings)
    write_json(folder / "model_params.json", {"total": 9, "breakdown": {"embed.0.weight": 9}})
    _text(folder / "sparsities.csv", "sparsity,nnz,embed.0.weight_pruning_mask\n0.5,7,0.25\n")
    for split in ("test_beam_2", "val_beam_1"):
        entries = [{"image_id": 1, "caption": "a dog"}]
        write_json(folder / split / "caption_0020.json", entries)
        _text(folder / split / "scores.csv", "Step,CIDEr\n0010,0.5\n0020,0.25\n")
    (folder / "tokenizer").mkdir()
    _text(folder / "tokenizer/train_captions.txt", "a dog\n")


@reader("reference_results", make=_reference_results)
def _read_reference_results(folder):
    return table_rows([read_run(folder, "x")])


def _config(folder):
    write_json(folder / "config.json", default_config().to_dict())
    write_json(folder / "data/extractor.json", {"extractor": "lite0", "size": 64})


@reader("config", errors=(ConfigError, DataError), make=_config)
def _read_config(folder):
    config = default_config()
    config.data.dir = str(folder / "data")
    _note_extractor(config, folder / "run")
    return check_workdir(default_config(), folder)


# --- Files of PyTorch and of the reference


def _state_dict():
    tensors = {"w": np.ones((3, 2), np.float32), "n": np.arange(4)}
    return {**tensors, "s": SparseTensor.from_dense(np.eye(3, dtype=np.float32))}


def _torch(folder):
    save_torch_file(folder / "model.pth", _state_dict())


def _legacy(folder):
    shutil.copy(TESTS / "golden/torch/legacy.pth", folder / "model.pth")


def _load_torch(folder):
    return load_torch_file(folder / "model.pth")


READERS["torch:zip"] = Reader(_torch, _load_torch, (CheckpointError,))
READERS["torch:legacy"] = Reader(_legacy, _load_torch, (CheckpointError,))


def _reference(folder, model, packed):
    """Write a checkpoint of the reference as a folder, or as a zip."""
    captioner_runs.make_run(folder / "run", model)
    export_reference(folder / "run", folder / "reference", report=lambda line: None)
    shutil.rmtree(folder / "run")
    if packed:
        shutil.make_archive(str(folder / "reference"), "zip", folder / "reference")
        shutil.rmtree(folder / "reference")


for model in captioner_runs.SIZES:
    for suffix in ("", ".zip"):

        @reader(
            f"reference:{model}{suffix}",
            errors=(CheckpointError, ConfigError, DataError),
            make=functools.partial(_reference, model=model, packed=bool(suffix)),
        )
        def _read_reference(folder, suffix=suffix):
            output = folder / "imported"
            return import_reference(folder / f"reference{suffix}", output, lambda line: None)


# --- Self-critical training


def _df(folder):
    count_documents([["a dog", "a cat runs"], ["a dog runs"]], eos="<eos>").save(folder / "df.npz")


@reader("document_frequency", make=_df)
def _read_df(folder):
    found = DocumentFrequency.load(folder / "df.npz")
    return found.idf(np.array([[0, 1, 2, 3]]))


def _df_pickle(folder, protocol):
    counts = collections.defaultdict(float, {("a",): 2.0, ("a", "dog"): 1.0, ("<eos>",): 3.0})
    content = {"ref_len": 3, "document_frequency": counts}
    (folder / "words.p").write_bytes(pickle.dumps(content, protocol))


for protocol in (2, 4):

    @reader(f"df_pickle:{protocol}", make=functools.partial(_df_pickle, protocol=protocol))
    def _read_df_pickle(folder):
        return load_df_pickle(folder / "words.p")


# --- Tokenizers


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


@reader("caption_lines", make=lambda folder: _text(folder / "captions.txt", "a dog\nein Bär\n"))
def _read_caption_lines(folder):
    return read_captions(folder / "captions.txt"), ptb_java._read(str(folder / "captions.txt"))


def _text(path, text):
    path.write_text(text, encoding="utf-8")


# --- Features


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


def _sizes(folder):
    images = [{"id": 42, "width": 9, "height": 8}, {"id": "b", "width": 7, "height": 6}]
    write_json(folder / "coco.json", {"images": images})
    write_json(folder / "plain.json", {"42": [9, 8], "b": [7, 6]})
    (folder / "pictures").mkdir()
    Image.new("RGB", (9, 8)).save(folder / "pictures/42.png")


@reader("image_sizes", make=_sizes)
def _read_sizes(folder):
    return [load_image_sizes(folder / name) for name in ("coco.json", "plain.json", "pictures")]


# --- Datasets


def _karpathy(folder, name="dataset_x.json"):
    splits = enumerate(["train", "restval", "val", "test"])
    images = [karpathy_image(number, split, cocoid=number) for number, split in splits]
    write_json(folder / name, {"images": images, "dataset": "toy"})


def _coco(folder):
    for split, first in (("train2014", 0), ("val2014", 10), ("test2014", 20)):
        images = [
            {"id": first + i, "file_name": f"{i}.jpg", "width": 9, "height": 8} for i in range(2)
        ]
        notes = [{"image_id": first + i % 2, "caption": "A dog."} for i in range(3)]
        write_json(folder / f"captions_{split}.json", {"images": images, "annotations": notes})
    _text(folder / "val_ids.txt", "10\nCOCO_val2014_000000000011.jpg\n")


def _coco_online(folder):
    _karpathy(folder)
    write_json(folder / "image_info_test2014.json", {"images": [{"id": 5, "file_name": "5.jpg"}]})


def _flickr8k(folder):
    lines = [f"{name}.jpg#{n}\tA {name} {n} ." for name in "abcd" for n in range(2)]
    _text(folder / "Flickr8k.token.txt", "\n".join(lines))
    for split, name in (("train", "c"), ("dev", "a"), ("test", "b")):
        _text(folder / f"Flickr_8k.{split}Images.txt", f"{name}.jpg\n")


def _instapic(folder):
    content = {"user": {"post": {"caption": "Sun #1", "tags": ["sun"]}, "two": {"caption": "A b"}}}
    write_json(folder / "insta-caption-train.json", content)
    write_json(folder / "insta-caption-test1.json", {"other": {"post": {"caption": "Sea"}}})


def _photo_folder(folder):
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
    "coco_json": _coco,
    "coco_online": _coco_online,
    "flickr8k": _flickr8k,
    "imagined": _imagined,
    "instapic": _instapic,
    "karpathy": _karpathy,
    "photos": _photo_folder,
    "tfds": functools.partial(_karpathy, name="metadata.json"),
}
_DATASETS |= {name: _karpathy for name in DATASETS if name.startswith("toy")}

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


def _manifest(folder):
    write_json(folder / "manifest.json", {"dataset": "toy", "version": 1})


@reader("toy_manifest", make=_manifest)
def _read_toy_manifest(folder):
    return toy_scenes.read_manifest(folder)


def _id_list(folder):
    _karpathy(folder)
    _text(folder / "test2014_ids.txt", "5\n6.jpg\n")


@reader("id_list", make=_id_list)
def _read_id_list(folder):
    return load_splits("coco_online", folder)


# --- Captions, options and pictures


def _captions(folder):
    entries = [{"image_id": 1, "caption": "a dog"}, {"image_id": "x", "caption": "a cat"}]
    write_json(folder / "captions.json", entries)


@reader("captions", make=_captions)
def _read_captions_file(folder):
    return caption_files.load_captions(folder / "captions.json")


def _references(folder):
    _coco(folder)
    _karpathy(folder)
    _photo_folder(folder)
    write_json(folder / "plain.json", {"1": ["a dog", "the dog"], "x": ["a cat"]})


@reader("references", make=_references)
def _read_references(folder):
    names = ("captions_val2014", "dataset_x", "captions", "plain")
    return [caption_files.load_references(folder / f"{name}.json") for name in names]


def _groups(folder):
    write_json(folder / "groups.json", {"1": "pets", "x": 7})


@reader("groups", make=_groups)
def _read_groups(folder):
    return score_files.load_groups(folder / "groups.json", [1, "x"])


def _caption_sets(folder):
    candidates = [{"caption": "a dog", "score": -1.5}, {"caption": "the dog"}]
    write_json(folder / "sets.json", [{"image_id": 1, "candidates": candidates}])


@reader("caption_sets", make=_caption_sets)
def _read_caption_sets(folder):
    return caption_files.load_caption_sets(folder / "sets.json")


def _results(folder):
    _captions(folder)
    entries = read_json(folder / "captions.json")
    entries[0]["attention"] = [[0.5, 0.5], [0.25, 0.75]]
    write_json(folder / "captions.json", entries)
    _text(folder / "scores_per_image.csv", "image_id,caption,CIDEr\n1,a dog,1.5\nx,a cat,\n")
    write_json(folder / "scores.json", {"CIDEr": 1.5, "CIDEr_95%": [1, 2], "METEOR": None})


@reader("results", make=_results)
def _read_results(folder):
    table, corpus = folder / "scores_per_image.csv", folder / "scores.json"
    attention = result_files.load_attention(folder / "captions.json")
    scores = result_files.load_image_scores(table), result_files.load_corpus_scores(corpus)
    return attention, scores


def _samples(folder):
    lines = [{"step": step, "captions": {"1": "a", "x": "the dog"}} for step in (4, 8)]
    _text(folder / "samples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


@reader("samples", make=_samples)
def _read_samples(folder):
    return live_summary.read_samples(folder / "samples.jsonl", 8)


def _stream(folder):
    lines = [{"settings": {"a": 1}}, {"image_id": 1, "caption": "x"}, {"image_id": 2}]
    _text(folder / "out.json.partial", "".join(json.dumps(line) + "\n" for line in lines))


# It is opened to be written too: faults of the system are for the commands to report.
@reader("caption_stream", errors=(SparsecapError, OSError), make=_stream)
def _read_stream(folder):
    with stream.CaptionStream(folder / "out.json", {"a": 1}) as opened:
        return opened.done


def _search(folder):
    write_json(folder / "prefix.json", {"1": "a", "x": "the"})
    write_json(folder / "required.json", {"1": ["dog"], "x": ["cat", "a|the"]})


@reader("search_flags", errors=(ConfigError, DataError), make=_search)
def _read_search_flags(folder):
    if "prefix" not in flags.FLAGS:
        search_flags.define()
    paths = [f"--{name}={folder}/{name}.json" for name in ("prefix", "required")]
    flags.FLAGS(["x", *paths])
    return SearchOptions(**search_flags.given_options())


def _sweep(folder):
    write_json(folder / "a/result.json", {"CIDEr": 1.0})
    rows = [{"seed": 1, "CIDEr": 1.0, "dev_curve": "0.1 0.2"}, {"seed": 2, "CIDEr": 2e-3, "p": ""}]
    write_table(folder / "table.csv", rows)


@reader("sweep", make=_sweep)
def _read_sweep(folder):
    labels = {"a": {"seed": 1}, "b": {"seed": 2}}
    sweep_tables.finished_rows(folder, labels)
    rows, _ = sweep_tables.read_rows(folder / "table.csv", labels)
    assert all(math.isfinite(row["CIDEr"]) for row in rows.values())
    return rows


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


def read_only():
    """Do what is no reading once (tracing models, loading published weights), or leave it out."""
    cached = functools.lru_cache(64)(models.abstract_params)
    directory.abstract_params = reference.abstract_params = cached
    extractors.load_params = functools.cache(efficientnet_lite.load_params)
    sparsity_report.SummaryWriter = mock.MagicMock()
    sparsity_report._draw = mock.MagicMock()
    attention_plot.Figure = attention_plot.save_figure = mock.MagicMock()
    os.fsync = lambda file: None

"""Readers of captions, references, scores and tables of sweeps."""

import json
import math

from absl import flags
from fuzz_datasets import coco_files, karpathy_files, photo_folder
from fuzz_reader import reader
from fuzz_stores import text_file

from sparsecap_jax.captioning import stream
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.commands import evaluate, search_flags
from sparsecap_jax.errors import ConfigError, DataError, SparsecapError
from sparsecap_jax.evaluation import (
    caption_files,
    result_files,
    score_files,
)
from sparsecap_jax.experiments import sweep_tables
from sparsecap_jax.files import read_json, write_json, write_table
from sparsecap_jax.runs import live_summary


def _captions(folder):
    entries = [{"image_id": 1, "caption": "a dog"}, {"image_id": "x", "caption": "a cat"}]
    write_json(folder / "captions.json", entries)


@reader("captions", make=_captions)
def _read_captions_file(folder):
    return caption_files.load_captions(folder / "captions.json")


def _photo_captions(folder):
    attention = {"attention": [[0.5, 0.5], [1.0, 0.0]]}
    entries = {"a/1.jpg": {"photo": "a/1.jpg", "image_id": 1, "caption": "a dog", **attention}}
    write_json(folder / "c.json", {**entries, "b.png": {"image_id": "b", "caption": "a cat"}})


@reader("photo_captions", make=_photo_captions)
def _read_photo_captions(folder):
    captions = caption_files.load_captions(folder / "c.json")
    return captions, result_files.load_attention(folder / "c.json")


def _references(folder):
    coco_files(folder)
    karpathy_files(folder)
    photo_folder(folder)
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
    text_file(folder / "scores_per_image.csv", "image_id,caption,CIDEr\n1,a dog,1.5\nx,a cat,\n")
    write_json(folder / "scores.json", {"CIDEr": 1.5, "CIDEr_95%": [1, 2], "METEOR": None})


@reader("results", make=_results)
def _read_results(folder):
    table, corpus = folder / "scores_per_image.csv", folder / "scores.json"
    attention = result_files.load_attention(folder / "captions.json")
    scores = result_files.load_image_scores(table), result_files.load_corpus_scores(corpus)
    earlier = evaluate._has_attention(folder), evaluate._other_search(folder, {"beam_size": 2})
    return attention, scores, earlier


def _samples(folder):
    lines = [{"step": step, "captions": {"1": "a", "x": "the dog"}} for step in (4, 8)]
    text_file(folder / "samples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


@reader("samples", make=_samples)
def _read_samples(folder):
    return live_summary.read_samples(folder / "samples.jsonl", 8)


def _stream(folder):
    lines = [{"settings": {"a": 1}}, {"image_id": 1, "caption": "x"}, {"image_id": 2}]
    text_file(folder / "out.json.partial", "".join(json.dumps(line) + "\n" for line in lines))


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
    write_json(folder / "a/config.json", {"steps": 4})
    rows = [{"seed": 1, "CIDEr": 1.0, "dev_curve": "0.1 0.2"}, {"seed": 2, "CIDEr": 2e-3, "p": ""}]
    write_table(folder / "table.csv", rows)


@reader("sweep", make=_sweep)
def _read_sweep(folder):
    labels = {"a": {"seed": 1}, "b": {"seed": 2}}
    sweep_tables.finished_rows(folder, labels)
    sweep_tables.finished_config(folder / "a")
    rows, _ = sweep_tables.read_rows(folder / "table.csv", labels)
    assert all(math.isfinite(row["CIDEr"]) for row in rows.values())
    return rows

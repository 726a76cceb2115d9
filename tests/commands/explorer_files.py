"""A dataset of 13 drawn images and made-up results of two models; shared by the explorer's tests.

Image n has the references "a red ball on grass" and "the ball N"; model `first` says "a red ball N"
and `second` says "a blue ball N", with CIDEr n / 10 and 1 - n / 20. Images 12 and 13 are of the
validation split, which `second` did not caption. Each image has two regions: the left half and a
small square.
"""

import csv
import json

import numpy as np
from PIL import Image

from sparsecap_jax.files import write_json
from sparsecap_jax.runs.config import default_config, to_json

TEST, VAL = range(1, 12), range(12, 14)
BOXES = np.array([[0, 0, 0.5, 1], [0.25, 0.5, 0.5, 0.75]], np.float32)
ATTENTION = {
    "first": [[0.9, 0.1], [0.4, 0.6], [0.25, 0.75], [1.0, 0.0]],
    "second": [[0.0, 1.0], [0.5, 0.5], [0.36, 0.64], [0.81, 0.19]],
}


def references(number):
    return ["a red ball on grass", f"the ball {number}"]


def caption(model, number):
    return f"a {'red' if model == 'first' else 'blue'} ball {number}"


def cider(model, number):
    return number / 10 if model == "first" else 1 - number / 20


def make_dataset(folder, pictures=True, boxes=True):
    """Write a Karpathy JSON, pictures and regions; return a config of it."""
    for name in ("images", "bu/cocobu_att", "bu/cocobu_box_relative"):
        (folder / name).mkdir(parents=True)
    images = []
    for number in (*TEST, *VAL):
        split = "test" if number in TEST else "val"
        sentences = [{"raw": text, "tokens": text.split()} for text in references(number)]
        name = {"filename": f"{number}.png", "filepath": "", "split": split, "cocoid": number}
        images.append({**name, "sentences": sentences})
        if pictures:
            Image.new("RGB", (40, 20), (20 * number % 256, 90, 160)).save(
                folder / f"images/{number}.png"
            )
        np.save(folder / f"bu/cocobu_att/{number}.npy", np.ones((2, 4), np.float32))
        if boxes:
            np.save(folder / f"bu/cocobu_box_relative/{number}.npy", BOXES)
    write_json(folder / "dataset_drawn.json", {"images": images})
    config = default_config()
    config.data.update({"name": "karpathy", "dir": str(folder), "feature_size": 4})
    return config


def make_results(run, model, split, search="beam_2", changes=None, attention=True):
    """Write what `launch/evaluate.py` writes; `changes` are captions of some images."""
    folder = run / f"{split}_{search}"
    numbers = TEST if split == "test" else VAL
    captions = {number: caption(model, number) for number in numbers} | (changes or {})
    entries = [{"image_id": number, "caption": text} for number, text in captions.items()]
    for entry in entries if attention else ():
        if entry["caption"] == caption(model, entry["image_id"]):
            entry["attention"] = ATTENTION[model]
    write_json(folder / "captions.json", entries)
    means = [cider(model, number) for number in captions]
    corpus = {"CIDEr": sum(means) / len(means), "images": len(captions), "CIDEr_95%": [0.1, 0.9]}
    write_json(folder / "scores.json", {**corpus, "Bleu_1": 0.5, "sparsity": 0.95})
    with (folder / "scores_per_image.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "caption", "Bleu_1", "CIDEr"])
        for number, text in captions.items():
            rows.writerow([number, text, 0.5 if model == "first" else 0.75, cider(model, number)])
    return folder


def make_runs(folder, **dataset):
    """Write a dataset and two runs with results; return the runs."""
    config = make_dataset(folder / "data", **dataset)
    runs = [folder / "first", folder / "second"]
    for run in runs:
        write_json(run / "config.json", json.loads(to_json(config)))
        make_results(run, run.name, "test")
    make_results(runs[0], "first", "val", "beam_1")
    return runs

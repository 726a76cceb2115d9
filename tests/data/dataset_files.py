"""Annotation files of a few images, and what a test says of the splits read from them."""

import json


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def ids_of(splits):
    return {name: [record.image_id for record in records] for name, records in splits.items()}


def sizes(splits):
    return {name: len(records) for name, records in splits.items()}


def karpathy_image(image_id, split, **changes):
    name = f"COCO_val2014_{image_id:012d}.jpg"
    sentences = [{"tokens": ["a", "cat", str(image_id)], "raw": f"A cat {image_id}."}]
    return {"filename": name, "split": split, "sentences": sentences, **changes}


def photo(**changes):
    return {"filename": "a.jpg", "split": "train", "captions": ["A dog."]} | changes

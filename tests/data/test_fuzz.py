"""Split files that are damaged anywhere: one error of one line, or records; never anything else."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecap_jax.data.datasets import load_splits
from sparsecap_jax.data.records import Record
from sparsecap_jax.errors import DataError

GOOD = {
    "karpathy": (
        "dataset_x.json",
        {
            "images": [
                {
                    "filename": f"COCO_val2014_00000000000{i}.jpg",
                    "filepath": "val2014",
                    "cocoid": i,
                    "split": split,
                    "sentences": [{"tokens": ["a", "dog"], "raw": "A dog."}],
                }
                for i, split in enumerate(["train", "restval", "val", "test"])
            ]
        },
    ),
    "coco_json": (
        "captions_val2014.json",
        {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(2)],
            "annotations": [{"image_id": i % 2, "caption": "A dog."} for i in range(3)],
        },
    ),
    "photos": (
        "captions.json",
        {"images": [{"filename": "a.jpg", "split": "dev", "captions": ["A dog.", "Ein Bär"]}]},
    ),
    "instapic": (
        "insta-caption-test1.json",
        {"user": {"post": {"caption": "Sun #1", "tags": ["sun"]}}},
    ),
}
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("../../x")
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def places(value, path=()):
    """Paths of all nodes of a JSON value."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*path, key))


def damaged(content, data):
    """The value with one node replaced, removed or doubled."""
    path = data.draw(st.sampled_from(list(places(content))))
    content = copy.deepcopy(content)
    if not path:
        return data.draw(JSON)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    match data.draw(st.sampled_from(["replace", "remove", "double"])):
        case "replace":
            parent[path[-1]] = data.draw(JSON)
        case "remove":
            del parent[path[-1]]
        case "double" if isinstance(parent, list):
            parent.append(parent[path[-1]])
    return content


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_split_files(name, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    file, content = GOOD[name]
    if name == "instapic":
        (folder / "insta-caption-train.json").write_text(json.dumps(content))
        content = {"other": content["user"]}
    text = json.dumps(damaged(content, data))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(text))))
    (folder / file).write_text(text[:cut])
    for skip in (False, True):
        try:
            splits = load_splits(name, folder, skip_bad=skip)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            records = [r for split in splits.values() for r in split]
            assert all(isinstance(r, Record) for r in records)
            assert len({r.image_id for r in records}) == len(records)
            assert all(".." not in r.filename.split("/") for r in records)

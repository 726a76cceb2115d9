"""InstaPIC-1.1M: captions of Instagram posts, in JSON files of users and their posts.

Park, Kim, Kim, "Attend to You: Personalized Image Captioning with Context Sequence Memory
Networks" (2017). `insta-caption-{train,test1,test2}.json` hold `{user: {post: {"caption": text}}}`;
picture and features of a post go by `USER_@_POST`. test1 has users of its own, test2 posts of users
that are in train.
"""

import hashlib
import pathlib
from typing import Any

from sparsecap_jax.data.fields import Faults, check_path, field
from sparsecap_jax.data.records import Blanks, Record, caption_pair, check_text_option, collect
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

VAL_POSTS = 2000


def load_instapic(
    directory: pathlib.Path,
    *,
    test: str = "insta-caption-test1.json",
    text: str = "tokens",
    faults: Faults | None = None,
) -> dict[str, list[Record]]:
    """Read the caption lists in `directory` or `directory/json`.

    There is no published validation split: the `VAL_POSTS` posts of train (a tenth of it, if that
    is less) whose ids have the smallest SHA-256 are it, whatever the order of the file.

    Args:
        directory: where the files lie.
        test: name of the file of the test split.
        text: "tokens" trains on the words of a caption, "raw" on the caption as written.
        faults: what happens to bad posts; None stops at the first one.

    Raises:
        DataError: a file is missing or of another form, a post has no words, or comes twice.
    """
    check_text_option(text)
    blanks, faults = Blanks(), faults or Faults(unit="posts")
    files = [(_find(directory, name), split) for name, split in _files(test)]
    entries = (
        entry
        for path, split in files
        for entry in _posts(path, read_json(path, "a caption list"), split, text, blanks)
    )
    splits = collect(entries, directory, faults)
    ranked = sorted(splits["train"], key=lambda record: _rank(record.image_id))
    chosen = {record.image_id for record in ranked[: min(VAL_POSTS, len(ranked) // 10)]}
    train = splits["train"]
    splits["train"] = [record for record in train if record.image_id not in chosen]
    splits["val"] = [
        Record(r.image_id, "val", r.filename, r.captions, r.raw, r.folder)
        for r in train
        if r.image_id in chosen
    ]
    return splits


def _files(test: str) -> list[tuple[str, str]]:
    return [("insta-caption-train.json", "train"), (test, "test")]


def _find(directory: pathlib.Path, name: str) -> pathlib.Path:
    for path in (directory / name, directory / "json" / name):
        if path.is_file():
            return path
    raise DataError(f"{directory}: holds neither {name} nor json/{name}")


def _posts(path: pathlib.Path, content: Any, split: str, text: str, blanks: Blanks):
    """(place, function that makes the record) of every post."""
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected {{user: {{post: ...}}}}, found {content!r:.60}")
    for user, posts in content.items():
        if not isinstance(posts, dict):
            raise DataError(f"{path}: {user}: expected {{post: ...}}, found {posts!r:.60}")
        for post, entry in posts.items():
            name, where = f"{user}_@_{post}", f"{path}: {user}.{post}"

            def parse(entry=entry, name=name, where=where) -> Record:
                pair = caption_pair(field(entry, "caption", str, where), text, where)
                captions, raws = blanks.drop([pair], where)
                return Record(check_path(name, where), split, name, captions, raws)

            yield where, parse


def _rank(image_id: Any) -> bytes:
    return hashlib.sha256(str(image_id).encode()).digest()

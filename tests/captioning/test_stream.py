"""Files of captions that grow: interruptions lose nothing and double nothing."""

import errno
import json
import resource

import pytest

from sparsecap_jax.captioning.stream import CaptionStream
from sparsecap_jax.errors import DataError, SparsecapError
from sparsecap_jax.files import system_fault

SETTINGS = {"options": "beam", "size": 5}
ENTRIES = [{"image_id": i, "caption": text} for i, text in enumerate(["a dog", "zwei Äpfel", "x"])]
IDS = [0, 1, 2]


def write_left(path, entries=ENTRIES):
    """What a command does, whether it is the first time or not."""
    with CaptionStream(path, SETTINGS) as stream:
        for entry in entries:
            if entry["image_id"] not in stream.done:
                stream.write(entry)
        return stream.finish(IDS), stream.done


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_the_file_holds_the_entries_in_the_order_of_the_images(tmp_path, ending):
    path = tmp_path / "new" / f"captions.{ending}"
    result, done = write_left(path, ENTRIES[::-1])
    assert result == ENTRIES
    assert done == frozenset()
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert (json.loads(text) if ending == "json" else [json.loads(x) for x in lines]) == ENTRIES
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_cut_at_any_byte_it_continues_to_the_same_file(tmp_path):
    path, partial = tmp_path / "c.jsonl", tmp_path / "c.jsonl.partial"
    with CaptionStream(path, SETTINGS) as stream:
        for entry in ENTRIES:
            stream.write(entry)
    content = partial.read_bytes()
    seen = set()
    for cut in range(len(content) + 1):
        partial.write_bytes(content[:cut])
        result, done = write_left(path)
        assert result == ENTRIES
        assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == ENTRIES
        # Whole lines are kept, the first of which is no image.
        assert len(done) == max(content[:cut].count(b"\n") - 1, 0)
        seen.add(len(done))
    assert seen == {0, 1, 2, 3}


def test_nothing_is_there_before_the_end(tmp_path):
    path = tmp_path / "c.json"
    with pytest.raises(KeyError), CaptionStream(path, SETTINGS) as stream:
        stream.write(ENTRIES[0])
        stream.finish(IDS)
    assert not path.exists()
    with CaptionStream(path, SETTINGS) as stream:
        assert stream.done == {0}
        with pytest.raises(DataError, match="image 0 was captioned before"):
            stream.write(ENTRIES[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"settings": {"options": "greedy"}}\n',
            "was begun with options greedy, size None; expected options beam, size 5; remove it",
        ),
        (b'{"image_id": 3}\n', "was begun with no settings"),
        (b'{"image_id": 3}\n{"cut', "was begun with no settings"),
        (b"notes", r"partial: expected captions of .*beam.*; remove it to start"),
        (b"[1]\n", "line 1: expected an object"),
        (b'{"settings": {"options": "beam", "size": 5}}\n{"a\n', "line 2: broken JSON"),
        (b'{"settings": {"options": "beam", "size": 5}}\n{"a": 1}\n', "line 2: expected an image"),
        (
            b'{"settings": {"options": "beam", "size": 5}}\n{"image_id": 1}\n{"image_id": 1}\n',
            "line 3: expected an image of its own",
        ),
    ],
)
def test_what_is_not_ours_is_left_alone(tmp_path, content, message):
    partial = tmp_path / "c.json.partial"
    partial.write_bytes(content)
    with pytest.raises(DataError, match=message):
        CaptionStream(tmp_path / "c.json", SETTINGS)
    assert partial.read_bytes() == content


@pytest.mark.parametrize("content", ["notes", ""])
def test_a_link_is_left_alone(tmp_path, content):
    (tmp_path / "notes").write_text(content)
    partial = tmp_path / "c.json.partial"
    partial.symlink_to(tmp_path / "notes")
    with pytest.raises(SparsecapError, match=f"^{partial}: a symbolic link; expected a file of"):
        CaptionStream(tmp_path / "c.json", SETTINGS)
    assert (tmp_path / "notes").read_text() == content and partial.is_symlink()


def test_faults_of_the_block_are_not_those_of_the_file(tmp_path):
    with pytest.raises(OSError) as raised, CaptionStream(tmp_path / "c.json", SETTINGS):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename is None


def test_a_full_disk_is_named_with_the_file(tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            pytest.raises(OSError) as raised,
            CaptionStream(tmp_path / "c.json", SETTINGS) as stream,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, usual[1]))
            stream.write(ENTRIES[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert system_fault(raised.value) == f"{tmp_path}/c.json.partial: File too large"


def test_settings_of_any_size_are_not_read(tmp_path):
    with (tmp_path / "c.json.partial").open("wb") as file:
        file.seek(2**26 + 1)
        file.write(b"\n")
    message = r"c\.json\.partial: line 1: 67108865 bytes; expected at most 67108864$"
    with pytest.raises(DataError, match=message):
        CaptionStream(tmp_path / "c.json", SETTINGS)


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"c\.txt: expected a name that ends in \.json or \.jsonl"):
        CaptionStream(tmp_path / "c.txt", SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_empty_file(tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, usual[1]))
    try:
        with pytest.raises(OSError) as raised:
            CaptionStream(tmp_path / "captions.json", {"beam_size": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert system_fault(raised.value) == f"{tmp_path}/captions.json.partial: File too large"
    assert not list(tmp_path.iterdir())

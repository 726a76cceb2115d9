"""Checkpoints of the reference as folders and zips: read in place, nothing extracted or trusted."""

import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.interop import checkpoint_dir
from sparsecap_jax.interop.checkpoint_dir import PREFERENCE, open_checkpoint_dir
from sparsecap_jax.torch_files import save_torch_file

NAME = "TINY3_UpDownLSTM__supermask__0.975__wg_120.0"


def make_folder(path, weights=("model_best.pth",)):
    (path / "tokenizer").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"caption_model": "up_down_lstm"}))
    (path / "tokenizer" / "word.model").write_bytes(b"\x00model")
    (path / "tokenizer" / "word.vocab").write_text("a\n")
    (path / "tokenizer_old").mkdir()
    (path / "tokenizer_old" / "old.model").write_bytes(b"old")
    for index, name in enumerate(weights):
        save_torch_file(path / name, {"w": np.float32([index])})
    return path


def zip_folder(path, prefix=""):
    target = path.parent / f"{path.name}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path.rglob("*")):
            archive.write(file, prefix + file.relative_to(path).as_posix())
    return target


def zip_of(path, *members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_published_zip_and_the_same_as_a_folder(shared, tmp_path):
    source = shared / "reference" / "checkpoint" / f"{NAME}.zip"
    contents = json.loads((source.parent / "tiny3_xe_contents.json").read_text())
    shutil.unpack_archive(source, tmp_path)
    packed, folder = open_checkpoint_dir(source), open_checkpoint_dir(tmp_path / NAME)
    for checkpoint in (packed, folder):
        # paths of the author's machine are abbreviated in the contents file
        facts = {k: v for k, v in contents["config"].items() if "..." not in str(v)}
        assert len(facts) > 60
        assert {key: checkpoint.config[key] for key in facts} == facts
        assert checkpoint.weights == "model_best_pruned_sparse.pth"
        assert list(checkpoint.state_dict) == list(contents["tensors"])
        sizes = dict(map(tuple, contents["files"]))
        assert {name: len(data) for name, data in checkpoint.tokenizer.items()} == {
            name: sizes[f"{NAME}/tokenizer/{name}"] for name in ("word.model", "word.vocab")
        }
    assert packed.tokenizer == folder.tokenizer
    assert packed.source == str(source)


@pytest.mark.parametrize("prefix", ["", "run_01/"])
def test_weights_are_taken_in_order_of_preference(prefix, tmp_path):
    for start in range(len(PREFERENCE)):
        folder = make_folder(tmp_path / str(start), PREFERENCE[start:][::-1])
        for path in (folder, zip_folder(folder, prefix)):
            checkpoint = open_checkpoint_dir(path)
            assert checkpoint.weights == PREFERENCE[start]
            assert checkpoint.tokenizer == {"word.model": b"\x00model", "word.vocab": b"a\n"}
    last = open_checkpoint_dir(tmp_path / "0", "model_last.pth")
    assert (last.weights, last.state_dict["w"][0]) == ("model_last.pth", 0)


def test_a_single_other_weights_file_is_taken(tmp_path):
    assert open_checkpoint_dir(make_folder(tmp_path / "a", ["mine.pth"])).weights == "mine.pth"
    two = make_folder(tmp_path / "b", ["mine.pth", "other.pth"])
    with pytest.raises(CheckpointError, match=r"expected one of .*found \['mine.pth', 'other.pth"):
        open_checkpoint_dir(two)
    with pytest.raises(CheckpointError, match=r"model_last\.pth: missing; found \['mine"):
        open_checkpoint_dir(two, "model_last.pth")


def test_weights_outside_of_the_folder_are_refused(tmp_path):
    folder = make_folder(tmp_path / "a")
    shutil.copy(folder / "model_best.pth", tmp_path / "outside.pth")
    for path in (folder, zip_folder(folder)):
        with pytest.raises(CheckpointError, match="missing; found"):
            open_checkpoint_dir(path, "../outside.pth")


EVIL = ["../evil", "a/../../evil", "/etc/evil", "a//evil", "C:/evil", "a\\..\\evil", "./evil"]


@pytest.mark.parametrize("name", EVIL)
def test_zips_that_lead_outside_are_refused(name, tmp_path):
    path = zip_of(tmp_path / "evil.zip", ("run/config.json", "{}"), (name, "x"))
    with pytest.raises(CheckpointError, match=r"evil\.zip: .*: leads outside of the zip"):
        open_checkpoint_dir(path)


def test_config_with_a_byte_order_mark(tmp_path):
    """As in cases/config_bom."""
    folder = make_folder(tmp_path / "a")
    path = folder / "config.json"
    expected = open_checkpoint_dir(folder).config
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert open_checkpoint_dir(folder).config == open_checkpoint_dir(zip_folder(folder)).config
    assert open_checkpoint_dir(folder).config == expected
    path.write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON: key 'a' occurs 2 times"):
        open_checkpoint_dir(folder)


def test_broken_checkpoints_give_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such file or folder"):
        open_checkpoint_dir(tmp_path / "nowhere")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="text: cannot be read as a folder or zip"):
        open_checkpoint_dir(tmp_path / "text")
    folder = make_folder(tmp_path / "a")
    (folder / "config.json").write_text("{")
    for path in (folder, zip_folder(folder)):
        with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
            open_checkpoint_dir(path)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json: expected a JSON object"):
        open_checkpoint_dir(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        open_checkpoint_dir(folder)
    two = zip_of(tmp_path / "two.zip", ("a/config.json", "{}"), ("b/config.json", "{}"))
    with pytest.raises(CheckpointError, match="in one folder; found 2"):
        open_checkpoint_dir(two)


def test_corrupt_members_are_named(tmp_path, monkeypatch):
    path = zip_folder(make_folder(tmp_path / "a"))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("tokenizer/word.model").header_offset
    data[offset + 30 + len("tokenizer/word.model")] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged\.zip: .*word\.model: corrupt"):
        open_checkpoint_dir(tmp_path / "damaged.zip")
    (tmp_path / "cut.zip").write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"cut\.zip: cannot be read as a folder or zip"):
        open_checkpoint_dir(tmp_path / "cut.zip")
    monkeypatch.setattr(checkpoint_dir, "MAX_FILE_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"model_best\.pth: claims \d+ bytes; expected at"):
        open_checkpoint_dir(path)


def test_small_files_are_small(tmp_path):
    folder = make_folder(tmp_path / "a")
    (folder / "config.json").write_bytes(b" " * (2**24 + 1) + b"{}")
    for path in (folder, zip_folder(folder)):
        with pytest.raises(CheckpointError, match=r"config\.json: .*16777219 bytes; exp"):
            open_checkpoint_dir(path)
    (folder / "config.json").write_text("[" * 100_000)
    for path in (folder, zip_folder(folder)):
        with pytest.raises(CheckpointError, match=r"config\.json: not JSON: "):
            open_checkpoint_dir(path)


def test_errors_inside_the_weights_name_both_files(tmp_path):
    folder = make_folder(tmp_path / "a")
    (folder / "model_best.pth").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match=r"a: model_best\.pth: not a PyTorch file"):
        open_checkpoint_dir(folder)


def test_entries_that_are_no_tensors_are_named(tmp_path):
    folder = make_folder(tmp_path / "a")
    with zipfile.ZipFile(folder / "model_best.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": [1]}, 2))
    checkpoint = open_checkpoint_dir(folder)
    assert checkpoint.state_dict == {"w": [1]}
    with pytest.raises(CheckpointError, match=r"a: model_best\.pth: w is a list, no tensor"):
        checkpoint.dense_state_dict()

import json
import logging
import os
import resource
import signal

import numpy as np
import pytest
from prepare_runs import run_prepare as run

from sparsecap_jax import stopping
from sparsecap_jax.data.stores import STORES, NpyFolderStore, open_store
from sparsecap_jax.data.stores.array_records import decode, encode, load_manifest
from sparsecap_jax.data.stores.convert import convert, verify
from sparsecap_jax.errors import ConfigError, DataError, SparsecapError
from sparsecap_jax.files import system_fault
from sparsecap_jax.locks import locked

WIDTH = 4


def features(image_id):
    return np.random.default_rng(image_id).normal(size=(1 + image_id % 3, WIDTH)).astype("f4")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "npy"
    (root / "cocobu_att").mkdir(parents=True)
    for image_id in range(7):
        np.save(root / f"cocobu_att/{image_id}.npy", features(image_id))
    return root


def options(folder, output, *more):
    return [f"--features={folder}", f"--output={output}", f"--feature_size={WIDTH}", *more]


class Stopped(Exception):
    pass


def test_a_stopped_conversion_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    output, reads = tmp_path / "out", []

    class Stopping(NpyFolderStore):
        limit = 5

        def __getitem__(self, image_id):
            if len(reads) == self.limit:
                raise Stopped
            reads.append(image_id)
            return super().__getitem__(image_id)

    store = Stopping(folder, WIDTH)
    with pytest.raises(Stopped):
        convert(store, output, shard_size=2, report=lambda _: None)
    # two whole shards, nothing of the third, and it does not pass for finished
    assert sorted(p.name for p in output.iterdir()) == [
        *(f"features-0000{n}.{e}" for n in range(2) for e in ("array_record", "json"))
    ]
    with pytest.raises(DataError, match=r"manifest\.json: no such file or .* the manifest"):
        open_store(output, WIDTH, format="array_record")
    with pytest.raises(ConfigError, match="holds a conversion of other images or options"):
        convert(store, output, shard_size=3, report=lambda _: None)
    (output / "features-00001.array_record").write_bytes(b"cut")  # as a full disk leaves it
    description = output / "features-00001.json"
    shard = json.loads(description.read_text())
    description.write_text("[]")
    with pytest.raises(ConfigError, match="holds a conversion of other images or options"):
        convert(store, output, shard_size=2, report=lambda _: None)
    description.write_text(json.dumps({"plan": shard["plan"], "bytes": 3}))
    with pytest.raises(DataError, match=r"00001\.json: key 'file' is missing"):
        convert(store, output, shard_size=2, report=lambda _: None)
    os.truncate(description, 2**27)
    with pytest.raises(DataError, match=r"00001\.json: 134217728 bytes; expected .* at most 6710"):
        convert(store, output, shard_size=2, report=lambda _: None)
    description.write_text(json.dumps(shard))
    store.limit = None
    lines = []
    manifest = convert(store, output, shard_size=2, report=lines.append)
    assert reads[5:] == [2, 3, 4, 5, 6]
    assert manifest["images"] == 7
    assert [line.split(" |")[0] for line in lines[:-1]] == [
        "2/7 images",
        "4/7 images",
        "6/7 images",
        "7/7 images",
    ]
    whole = convert(NpyFolderStore(folder, WIDTH), tmp_path / "b", shard_size=2, report=print)
    # checksums too: the same bytes as without the stop
    assert whole | {"source": "Stopping"} == manifest
    assert sorted(p.name for p in output.iterdir()) == [
        *(f"features-0000{n}.array_record" for n in range(4)),
        "manifest.json",
    ]
    again = convert(store, output, shard_size=2, report=lines.append)
    assert (again, lines[-1]) == (manifest, f"{output}: was finished already")
    with pytest.raises(ConfigError, match="holds a conversion of other images or options"):
        convert(store, output, dtype="float16", shard_size=2)


def test_a_signal_stops_it_before_the_next_image(folder, tmp_path):
    class Signalled(NpyFolderStore):
        def __getitem__(self, image_id):
            if image_id == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(image_id)

    output, lines = tmp_path / "out", []
    with pytest.raises(stopping.Stopped) as stopped, stopping.on_signals():
        convert(Signalled(folder, WIDTH), output, shard_size=2, report=lambda _: None)
    assert str(stopped.value) == "stopped by SIGINT; run the same command to continue"
    assert len(list(output.iterdir())) == 4  # two whole shards
    convert(NpyFolderStore(folder, WIDTH), output, shard_size=2, report=lines.append)
    assert len(lines) == 5 and not verify(output)


def test_two_commands_with_one_output(folder, tmp_path):
    output = tmp_path / "out"
    with locked(output), pytest.raises(SparsecapError, match=r"out: process .* is writing to it"):
        run("convert", *options(folder, output))
    assert not output.exists()


def test_what_a_killed_command_left_goes(folder, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    for name in ("manifest.json", "features-00000.json"):
        (output / f".{name}.abcd1234").write_text("{")
    run("convert", *options(folder, output))
    names = ["features-00000.array_record", "manifest.json"]
    assert sorted(path.name for path in output.iterdir()) == names


def test_a_full_disk_leaves_no_part_of_a_shard(folder, tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, usual[1]))
    try:
        with pytest.raises(OSError) as raised:
            run("convert", *options(folder, tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    fault = f"{tmp_path}/out/features-00000.array_record: File too large"
    assert system_fault(raised.value) == fault
    assert not (tmp_path / "out").exists()


def test_commands(folder, tmp_path, capsys):
    split = tmp_path / "split.json"
    images = [{"filename": f"{i}.jpg", "split": s} for i, s in ((3, "train"), (9, "val"))]
    split.write_text(json.dumps({"images": images}))
    output = tmp_path / "out"
    run("convert", *options(folder, output, "--dtype=float16", "--shard_size=4"))
    assert "wrote" in capsys.readouterr().out
    arguments = [f"--features={output}"]
    run("inspect", *arguments, "--read", "--verify")
    out = capsys.readouterr().out
    assert f"{output}: array_record, 7 images, ids 0 to 6\n" in out
    assert "regions: 1 to 3 per image, mean 1.9\n" in out
    assert "\ngood: 7 images\n" in out
    assert "right checksums: 2 files\n" in out
    low = min(features(i).astype(np.float16).min() for i in range(7))
    assert f"width {WIDTH}, values: {low:.4g} to " in out
    with pytest.raises(SystemExit) as caught:
        run("inspect", *arguments, f"--split_json={split}")
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert "train: features of 1 of 1 image\n" in out
    assert "val: features of 0 of 1 image; missing: 9\n" in out


def test_inspect_reads_one_image(folder, capsys):
    run("inspect", f"--features={folder}")  # whose .npy state their width
    assert f"image 0: width {WIDTH}\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("inspect", f"--features={folder}", "--feature_size=9")
    assert f"features: expected shape [R, 9] or [h, w, 9], found [1, {WIDTH}]" in (
        capsys.readouterr().out
    )


def test_inspect_tells_of_bad_images(folder, capsys):
    np.save(folder / "cocobu_att/2.npy", np.full((2, WIDTH), np.nan, np.float32))
    (folder / "cocobu_att/3.npy").write_bytes(b"")
    with pytest.raises(SystemExit):
        run("inspect", f"--features={folder}", f"--feature_size={WIDTH}", "--read")
    out = capsys.readouterr().out
    assert "1 images whose regions cannot be counted:" in out
    assert "2 images cannot be used:" in out
    assert "2.npy: features: 8 values are NaN" in out
    assert "3.npy: the file is empty" in out
    assert "\ngood: 5 images\n" in out


def test_changed_files_are_found(folder, tmp_path, capsys):
    output = tmp_path / "out"
    run("convert", *options(folder, output, "--shard_size=4"))
    path = output / "features-00000.array_record"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (output / "features-00001.array_record").unlink()
    assert [fault.split(": ")[1] for fault in verify(output)] == [
        "its checksum is not that of manifest.json",
        "no such file",
    ]
    with pytest.raises(SystemExit):
        run("inspect", f"--features={output}", f"--feature_size={WIDTH}", "--verify")
    assert "its checksum is not" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"no such file, but manifest\.json lists it"):
        open_store(output, WIDTH)[6]
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"features-00000\.array_record: record 0: "):
        open_store(output, WIDTH)[0]


def test_bad_images(folder, tmp_path, caplog):
    np.save(folder / "cocobu_att/2.npy", np.full((2, WIDTH), np.inf, np.float32))
    (folder / "cocobu_att/5.npy").write_bytes(b"junk")
    output = tmp_path / "out"
    with pytest.raises(DataError, match=r"2\.npy: features: 8 values are NaN or infinite"):
        run("convert", *options(folder, output, "--shard_size=2"))
    assert not [p for p in output.iterdir() if "part" in p.name]
    with caplog.at_level(logging.WARNING):
        run("convert", *options(folder, tmp_path / "b", "--shard_size=2", "--skip_bad"))
    assert "skipped 2 bad images" in caplog.text
    store = open_store(tmp_path / "b", WIDTH)
    assert store.image_ids() == [0, 1, 3, 4, 6]
    assert store.manifest["skipped"] == 2
    for image_id in range(7):
        (folder / f"cocobu_att/{image_id}.npy").write_bytes(b"")
    with pytest.raises(DataError, match="no image of it can be converted"):
        run("convert", *options(folder, tmp_path / "c", "--skip_bad"))
    assert not (tmp_path / "c/manifest.json").exists()


def test_float16_overflow_and_options(folder, tmp_path):
    np.save(folder / "cocobu_att/2.npy", np.full((2, WIDTH), 70000, np.float32))
    store = NpyFolderStore(folder, WIDTH)
    with pytest.raises(DataError, match="image 2: features are too large for float16"):
        convert(store, tmp_path / "a", dtype="float16", report=lambda _: None)
    for wrong in ({"dtype": "int8"}, {"shard_size": 0}):
        with pytest.raises(ConfigError, match="expected dtype float32, float16 and a shard_size"):
            convert(store, tmp_path / "a", **wrong)
    with pytest.raises(DataError, match="no file for 1 of 1 images: 99"):
        convert(store, tmp_path / "a", image_ids=[99])


def record(tmp_path):
    image = NpyFolderStore(tmp_path / "npy", WIDTH)[1]
    return encode(1, image, "float32")


def test_records_that_are_none(folder, tmp_path):
    good = record(tmp_path)
    assert decode(good, "x")[0] == 1
    for bad in (b"", b"SCF1", good[:-1], good + b"x", b"SCF2" + good[4:], good[:8] + b"[1,2]",
                good.replace(b'"shape":[2,4]', b'"shape":[4,4]'),
                good.replace(b'"shape":[2,4]', b'"shape":[-2,4'),
                b'SCF1\x36\0\0\0{"id":1,"dtype":"float32","shape":["a",8000000000000]}',
                good.replace(b'"shape":[2,4]', b'"shape":[2.,4'),
                good.replace(b"float32", b"float31")):  # fmt: skip
        with pytest.raises(DataError, match="x: not a record of features"):
            decode(bad, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this release reads 1"),
        ({"boxes": None}, "boxes: expected true or false, found None"),
        ({"shards": {}}, "shards: expected a list"),
        ({"shards": [{"file": "../x", "ids": [], "regions": []}]}, "below the image folder"),
        ({"shards": [{"file": "x", "ids": [1], "regions": []}]}, "1 ids and 0 numbers of regions"),
        ({"shards": [{"file": "x", "ids": [[]], "regions": [1]}]}, "1 ids and 1 numbers"),
        ({"shards": [{"file": "x", "ids": [1], "regions": ["1"]}]}, "1 ids and 1 numbers"),
        ({"shards": [{"file": "x", "ids": [1], "regions": [-1]}]}, "1 ids and 1 numbers"),
    ],
)
def test_bad_manifests(folder, tmp_path, change, message):
    run("convert", *options(folder, tmp_path / "out"))
    path = tmp_path / "out/manifest.json"
    path.write_text(json.dumps(load_manifest(tmp_path / "out") | change))
    with pytest.raises(DataError, match=message):
        open_store(tmp_path / "out", WIDTH)


def test_folders_of_other_widths_or_without_boxes(folder, tmp_path):
    run("convert", *options(folder, tmp_path / "out"))
    with pytest.raises(DataError, match="features are 4 wide, expected feature_size 2048"):
        open_store(tmp_path / "out")
    with pytest.raises(DataError, match="boxes are needed, and it was written without"):
        open_store(tmp_path / "out", WIDTH, True)


def test_the_format_may_be_a_store_of_a_plugin(folder, tmp_path, monkeypatch):
    (tmp_path / "my_stores.py").write_text(
        "from sparsecap_jax.data.stores import STORES, NpyFolderStore\n"
        "class Doubled(NpyFolderStore):\n"
        "    def __getitem__(self, image_id):\n"
        "        regions = super().__getitem__(image_id)\n"
        "        return type(regions)(2 * regions.features, regions.boxes, regions.fc)\n"
        "STORES.register('test_doubled', Doubled)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(STORES, "_entries", dict(STORES))  # restores it afterwards
    with pytest.raises(ConfigError, match=r"features_format is 'test_doubled'; \(valid: array"):
        run("convert", *options(folder, tmp_path / "a", "--format=test_doubled"))
    for name in ("my_stores:Doubled", "test_doubled"):
        output = tmp_path / name.replace(":", "_")
        run("convert", *options(folder, output, "--format", name))
        np.testing.assert_array_equal(open_store(output, WIDTH)[5].features, 2 * features(5))
    with pytest.raises(ConfigError, match="plugin 'none_such': cannot be imported"):
        run("inspect", f"--features={folder}", "--format=none_such:Store")

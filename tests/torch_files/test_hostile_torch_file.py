"""PyTorch files of others: nothing in them runs, what is broken gives one clear error."""

import io
import pathlib
import pickle
import random
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.torch_files import load_torch_file, tensors
from sparsecap_jax.torch_files.writing import Call, Global, Persistent, dump_dict

FIXTURES = pathlib.Path(__file__).parent.parent / "golden" / "torch"
FORMATS = ("zip", "legacy")


def zipped(tree, storages=(), compress=zipfile.ZIP_STORED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        archive.writestr("archive/data.pkl", tree)
        for index, data in enumerate(storages):
            archive.writestr(f"archive/data/{index}", data)
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return file


def legacy(tree, magic=0x1950A86A20F9469CFC6C, little_endian=True):
    system = {"protocol_version": 1001, "little_endian": little_endian}
    head = b"".join(pickle.dumps(part, 2) for part in (magic, 1001, system))
    return io.BytesIO(head + tree + pickle.dumps([], 2))


class Exploit:
    """Pickles as a call of `function`, as an attacker's object would."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def ran(marker):
    """What an attack below would run; module level, so that it pickles by name."""
    pathlib.Path(marker).touch()


ORDERED_DICT = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_parameter\n"
ATTACKS = {
    "system": (b"\x80\x02cos\nsystem\nX\x08\x00\x00\x00touch %s\x85R.", "os.system"),
    "eval": (b"\x80\x02c__builtin__\neval\n)R.", "__builtin__.eval"),
    "getattr": (b"\x80\x02cbuiltins\ngetattr\n)R.", "builtins.getattr"),
    "torch code": (b"\x80\x02ctorch.hub\nload\n)R.", "torch.hub.load"),
    "whole module": (
        b"\x80\x02csparse_caption.models\nModel\n)\x81.",
        "sparse_caption.models.Model",
    ),
    "dotted name": (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", "__init__"),
    "inst": (b"\x80\x02(ios\nsystem\n.", "os.system"),
    "new of ours": (b"\x80\x02" + ORDERED_DICT + b")\x81.", "NEWOBJ"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "memo slot": (b"\x80\x02}r\xff\xff\xff\xff.", "memo slot"),
    "replace a function": (
        b"\x80\x02" + REBUILD + b"N}X\x08\x00\x00\x00functionNs\x86b.",
        "can't set attribute",
    ),
    "replace a class": (b"\x80\x02" + ORDERED_DICT + b"}X\x01\x00\x00\x00xK\x01sb.", "__dict__"),
    "persistent id": (b"\x80\x02X\x06\x00\x00\x00moduleX\x01\x00\x00\x00x\x86Q.", "no storage"),
}


@pytest.mark.parametrize("container", [zipped, legacy])
@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_pickles_run_nothing(attack, container):
    tree, named = ATTACKS[attack]
    with pytest.raises(CheckpointError, match=f"^evil.pth: .*({named})"):
        load_torch_file(container(tree), name="evil.pth")
    # the whitelist is untouched: a good file still reads
    assert load_torch_file(FIXTURES / "zip.pth")["scalar"].shape == ()


@pytest.mark.parametrize("container", [zipped, legacy])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_real_exploit_does_not_fire(protocol, container, tmp_path):
    tree = pickle.dumps({"a": Exploit(ran, str(tmp_path / "marker"))}, protocol)
    with pytest.raises(CheckpointError, match=rf"global '{__name__}\.ran'.*nothing was executed"):
        load_torch_file(container(tree))
    assert not (tmp_path / "marker").exists()
    pickle.loads(tree)  # it would have fired
    assert (tmp_path / "marker").exists()


def tensor(shape, strides, offset=0, numel=6, storage="FloatStorage", key="0"):
    pid = ("storage", Global("torch", storage), key, "cpu", numel)
    args = (
        Persistent(pid),
        offset,
        shape,
        strides,
        False,
        Call(Global("collections", "OrderedDict"), ()),
    )
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), args)


def sparse(indices, values, shape, layout="torch.sparse_coo"):
    layout = Call(Global("torch.serialization", "_get_layout"), (layout,))
    size = Call(Global("torch", "Size"), (shape,))
    return Call(Global("torch._utils", "_rebuild_sparse_tensor"), (layout, (indices, values, size)))


SIX = np.arange(6, dtype=np.float32).tobytes()
LONG6 = np.array([0, 1, 2, 3, -1, 9], np.int64).tobytes()
INDICES = {"storage": "LongStorage", "key": "1"}


def coo(offset, shape, nnz=2):
    """A sparse tensor with indices `LONG6[offset:]`, `[1, nnz]`."""
    return sparse(tensor((1, nnz), (nnz, 1), offset, **INDICES), tensor((2,), (1,)), shape)


CLAIMS = {
    "beyond the storage": (tensor((2, 4), (4, 1)), "w: shape .* beyond its storage of 6"),
    "offset": (tensor((2, 3), (3, 1), offset=1), "w: .* at offset 1 reaches beyond"),
    "strides": (tensor((2, 2), (5, 1)), "w: .* reaches beyond"),
    "negative size": (tensor((-1, 3), (3, 1)), "not a tuple of sizes"),
    "rank": (tensor((2, 3), (1,)), "2 sizes but 1 strides"),
    "dimensions": (tensor((1,) * 40, (1,) * 40), "w: shape .* is too large"),
    "empty but huge": (tensor((0, 2**62), (1, 1)), "w: shape .* is too large"),
    "expanded bomb": (tensor((2**15, 2**15), (0, 0)), "w: tensors claim over 268435456 elements"),
    "storage bomb": (tensor((1,), (1,), numel=10**12), "claims 4000000000000 bytes .* has only"),
    "short storage": (tensor((2, 3), (3, 1), numel=7), "data/0: has 24 bytes, expected 28"),
    "missing storage": (tensor((1,), (1,), key="7"), "data/7: missing"),
    "bad key": (tensor((1,), (1,), key="../data.pkl"), r"data/\.\./data\.pkl: missing"),
    "sparse index": (coo(2, (3,)), "w: indices out of range"),
    "negative index": (coo(3, (9,)), "w: indices out of range"),
    "sparse bomb": (coo(0, (2**39,)), "w: tensors claim over"),
    "sparse values": (coo(0, (9,), nnz=3), r"w: values \(2,\) for indices \(1, 3\)"),
    "sparse rank": (coo(0, ()), "w: .* for a sparse tensor of shape"),
    "sparse layout": (
        sparse(tensor((1,), (1,)), tensor((1,), (1,)), (1,), "torch.sparse_csr"),
        "csr",
    ),
    "bare storage": (tensor((1,), (1,)).args[0], "w: a StorageRef is neither"),
    "bare function": (Global("torch._utils", "_rebuild_parameter"), "w: a Inert is neither"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_are_checked(claim):
    value, message = CLAIMS[claim]
    with pytest.raises(CheckpointError, match=message):
        load_torch_file(zipped(dump_dict([("w", value)]), [SIX, LONG6]))


def test_claims_of_the_legacy_format_are_checked():
    tree = dump_dict([("w", tensor((1,), (1,), numel=10**12))])
    with pytest.raises(CheckpointError, match=r"claims 4000000000000 bytes .* has only"):
        load_torch_file(legacy(tree))


def test_the_crafted_tensors_read_when_their_claims_hold():
    """The cases above fail for the reason they name, not because they are built wrongly."""
    items = [("w", tensor((2, 3), (3, 1))), ("s", coo(1, (3,))), ("one", tensor((1,), (2**62,)))]
    state = load_torch_file(zipped(dump_dict(items), [SIX, LONG6]))
    np.testing.assert_array_equal(state["w"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(state["s"].to_dense(), np.float32([0, 0, 1]))
    np.testing.assert_array_equal(state["one"], np.float32([0]))


def test_the_limit_is_for_all_tensors_together(monkeypatch):
    monkeypatch.setattr(tensors, "MAX_UNSTORED", 100)
    items = [(name, tensor((10, 6), (0, 1))) for name in "ab"]  # 54 elements more than stored each
    assert load_torch_file(zipped(dump_dict(items[:1]), [SIX]))["a"].shape == (10, 6)
    with pytest.raises(CheckpointError, match="b: tensors claim over 100"):
        load_torch_file(zipped(dump_dict(items), [SIX]))


def test_nesting_is_bounded():
    deep = pickle.dumps({"a": [[[1]]]}, 2)
    assert load_torch_file(zipped(deep)) == {"a": [[[1]]]}
    cyclic = []
    cyclic.append(cyclic)
    with pytest.raises(CheckpointError, match="a: nested deeper"):
        load_torch_file(zipped(pickle.dumps({"a": cyclic}, 2)))
    doubling = [1]
    for _ in range(28):  # 2^28 paths through 28 lists
        doubling = [doubling, doubling]
    state = load_torch_file(zipped(pickle.dumps({"a": doubling}, 2)))
    assert state["a"][0] is state["a"][1]


CASES = pathlib.Path(__file__).parent / "cases"
READERS = {
    "torch": "from sparsecap_jax.torch_files import load_torch_file as load",
    "document frequencies": "from sparsecap_jax.interop.df_pickle import load_df_pickle as load",
}
MEASURE = """
import sys, time
start = time.perf_counter()
try:
    load(sys.argv[1])
except ValueError as error:
    assert time.perf_counter() - start < 1
    print(error)
"""


def wrapped(tree):
    """A file of PyTorch's around a pickle."""
    return zipped(tree).getvalue()


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir()))
@pytest.mark.parametrize("reader", READERS)
def test_nested_keys_are_refused_before_they_are_hashed(reader, case, tmp_path):
    """A tuple of two of a tuple of two and so on: 2^45 parts, of which a hash visits all."""
    tree = (CASES / case).read_bytes()
    path = tmp_path / case
    path.write_bytes(wrapped(tree) if reader == "torch" else tree)
    command = [sys.executable, "-c", READERS[reader] + MEASURE, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert f"{path}: not a " in done.stdout
    assert "a dict key that is neither text, an integer, nor a flat tuple" in done.stdout


NESTED = [b"))\x86q\x00"] + [b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)]
SHARED = b"".join(NESTED)  # the tuple, and below it on the stack all that it is made of
ITEM = b"h\x3c"  # it alone, out of the memo
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
)
HASHES = {
    "set item": b"}" + ITEM + b"K\x01s.",
    "set items": b"}(K\x01K\x01" + ITEM + b"K\x01u.",
    "within a tuple": b"}X\x01\x00\x00\x00a" + ITEM + b"\x86K\x01s.",
    "behind popped marks": b"}(0" + ITEM + b"(K\x011K\x01s.",
    "of an OrderedDict": ORDERED_DICT + b")R" + ITEM + b"K\x01s.",
    "pair of an OrderedDict": ORDERED_DICT + b"](" + ITEM + b"K\x01\x86e\x85R.",
    "returned": b"}ctorch.serialization\n_get_layout\n" + ITEM + b"\x85RK\x01s.",
    "dtype": b"ctorch._utils\n_rebuild_tensor_v3\n(" + STORAGE + b"K\x00))NN" + ITEM + b"tR.",
    "defaultdict": b"ccollections\ndefaultdict\n" + ITEM + b"\x85R.",
    "list of storages": b"](" + ITEM + b"e.",
}


@pytest.mark.parametrize("reader", READERS)
def test_other_ways_to_a_hash_or_a_text_of_nested_tuples(reader, tmp_path):
    paths = []
    for name, tail in HASHES.items():
        tree = b"\x80\x02" + SHARED + tail
        if reader != "torch":
            data = tree
        elif name == "list of storages":
            data = legacy(pickle.dumps({}, 2)).getvalue().removesuffix(pickle.dumps([], 2)) + tree
        else:
            data = wrapped(tree)
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    script = (
        READERS[reader]
        + "\nimport sys\nfor path in sys.argv[1:]:"
        + MEASURE.replace("\n", "\n    ").replace("sys.argv[1]", "path")
    )
    command = [sys.executable, "-c", script, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == len(HASHES)


def test_names_integers_and_flat_tuples_are_keys():
    tree = {"a": {1: 2.0, -(2**40): 3, ("a", 4): 5, (): 6, "ü": {(1, 2, "b", 3): 7}}}
    for protocol in (2, 3, 4):
        assert load_torch_file(zipped(pickle.dumps(tree, protocol))) == tree


def test_ordered_dicts_of_python_2_hand_over_pairs():
    pairs = b"]X\x01\x00\x00\x00aK\x07\x86a"
    assert load_torch_file(zipped(b"\x80\x02" + ORDERED_DICT + pairs + b"\x85R.")) == {"a": 7}


GOOD = dump_dict([("w", tensor((2, 3), (3, 1)))])
BROKEN = {
    "not a torch file": (io.BytesIO(b"hello world"), "neither a zip archive nor a pickle"),
    "empty": (io.BytesIO(b""), "neither a zip archive nor a pickle"),
    "compressed": (zipped(GOOD, [SIX], zipfile.ZIP_DEFLATED), "compressed"),
    "torchscript": (zipped(GOOD, [SIX], **{"constants.pkl": b""}), "no TorchScript code"),
    "big-endian": (zipped(GOOD, [SIX], byteorder=b"big"), "byteorder: expected little"),
    "big-endian legacy": (legacy(GOOD, little_endian=False), "little-endian"),
    "other pickle": (io.BytesIO(pickle.dumps({"a": 1}, 2)), "not one that torch.save wrote"),
    "legacy without storages": (legacy(GOOD), "list of storages"),
    "a list": (zipped(pickle.dumps([1], 2)), "holds a list; expected a dict"),
    "numbered": (zipped(pickle.dumps({1: 2}, 2)), "holds a dict; expected a dict of named tensors"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_give_one_clear_error(case):
    file, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=f"^b.pth: .*{message}"):
        load_torch_file(file, name="b.pth")


def test_missing_file_and_other_zip(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth: cannot be read: No such file"):
        load_torch_file(tmp_path / "none.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "no tensors here")
    with pytest.raises(CheckpointError, match="a zip archive, but not one"):
        load_torch_file(tmp_path / "other.pth")


@pytest.mark.parametrize("form", FORMATS)
def test_every_truncation_is_an_error(form):
    data = (FIXTURES / f"{form}.pth").read_bytes()
    for length in range(0, len(data), 41):
        with pytest.raises(CheckpointError):
            load_torch_file(io.BytesIO(data[:length]))


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_bytes_never_raise_anything_else(form):
    data = (FIXTURES / f"{form}.pth").read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        try:
            load_torch_file(io.BytesIO(damaged))
        except CheckpointError:
            refused += 1
    assert refused > 100

"""Damage to files: of their bytes, and of the JSON, arrays, archives and numbers that they hold.

A set of files is a dict of contents by relative path. A content is bytes, `FOLDER`, or `Sparse`.
"""

import functools
import io
import json
import random
import re
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from sparsecap_jax.model_files import MAGIC

FOLDER = None
GIB = 2**30


class Sparse(NamedTuple):
    """A file of `size` bytes: `content`, then zeros that take no room on the disk."""

    content: bytes
    size: int


_EDGES = [0, 1, -1, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1]
_NUMBERS = ["0", "-1", "7", "1.5", "2147483648", "-9223372036854775808", str(2**70), "9" * 400]
_NUMBERS += ["1e309", "-1e-400", "NaN", "Infinity", "null", '""', "[]", "0x7f", "1" * 5000]
_TOKENS = [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"PK\x03\x04", b"PK\x05\x06"]
_TOKENS += [
    b"\x93NUMPY",
    b"cos\nsystem\n",
    b"(S'touch PWNED'\ntR.",
    b"}",
    b"q\x00",
    b"h\x00",
    b"\r\n",
]
_TOKENS += [b"[" * 100_000, b"(" * 2000, b'{"a":' * 2000, b"\t", b"\x80\x04\x95" + b"\xff" * 8]
_SHAPES = ["()", "(0,)", "(-1,)", "(2**70, 0)", "(1180591620717411303424, 0)", "(1, 1, 1, 1)"]
_SHAPES += ["(4294967296, 4294967296)", "(3000000000,)", "(1, 2147483648)", "(True,)", "(1.5,)"]
_SHAPES += ["'x'", "None", "(0, 9223372036854775807)", "(" * 500 + ")" * 500, "(1,) * 9999999999"]
_DTYPES = ["'|O'", "'<f8'", "'<f2'", "'>f4'", "'<c16'", "'|V8'", "'|S5'", "'<U9'", "'<i8'", "'|b1'"]
_DTYPES += ["'<M8[s]'", "'|V0'", "'<f4,<f4'", "[('a', '<f4')]", "[('a', '|O')]", "''", "7", "'<U0'"]
_VALUES = [None, True, -1, 0, 1.5, 2**31, 2**63, 2**64, 10**400, 1e308, float("nan"), float("inf")]
_VALUES += ["", "x", "../../x", "/etc/passwd", "\ud800", "\0", "os:system", "9" * 30, [], {}, [[]]]
_VALUES += [[None], [0], ["a", 1], {"": {}}, {"a": [1]}, "x" * 10**5, [0] * 10**4, "NaN", "1e999"]


def mutated(files, rng):
    """Return a copy of `files` with one to three pieces of damage."""
    files = dict(files)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        names = sorted(files)
        name = rng.choice(names)
        chance = rng.random()
        if chance < 0.02:
            files[name] = FOLDER
        elif chance < 0.03:
            del files[name]
            if not files:
                break
        elif chance < 0.06:
            other = rng.choice(names)
            files[name], files[other] = files[other], files[name]
        elif chance < 0.065 and isinstance(files[name], bytes):
            files[name] = Sparse(files[name], 3 * GIB)
        elif isinstance(files[name], bytes):
            others = [content for content in files.values() if isinstance(content, bytes)]
            files[name] = damage(files[name], rng, others)
    return files


def damage(content, rng, others=(b"",)):
    """Damage a content, knowing its format half of the time."""
    if rng.random() < 0.5:
        if content[:4] == b"PK\x03\x04":
            return _zip(content, rng)
        if content[:6] == b"\x93NUMPY":
            return _npy(content, rng)
        if content[:8] == MAGIC:
            return _model(content, rng)
        if content[8:10] == b'{"':  # safetensors
            end = 8 + int.from_bytes(content[:8], "little")
            header = _json(content[8:end], rng)
            return len(header).to_bytes(8, "little") + header + content[end:]
        if content[:1] in b"{[":
            return _json(content, rng)
    return rng.choice(_BYTES)(content, rng, others)


def _place(content, rng):
    # Headers are short, and most of the faults: they get half of the damage.
    end = len(content) if rng.random() < 0.5 else min(len(content), 256)
    return rng.randrange(end + 1)


def _flip(content, rng, others):
    result = bytearray(content or b"\0")
    for _ in range(rng.choice([1, 1, 2, 8])):
        result[min(_place(content, rng), len(result) - 1)] ^= 1 << rng.randrange(8)
    return bytes(result)


def _truncate(content, rng, others):
    return content[: rng.choice([0, 1, _place(content, rng), rng.randrange(len(content) + 1)])]


def _insert(content, rng, others):
    at = _place(content, rng)
    new = rng.choice([*_TOKENS, rng.randbytes(rng.choice([1, 4, 64, 5000]))])
    return content[:at] + new + content[at:]


def _remove(content, rng, others):
    at = _place(content, rng)
    return content[:at] + content[at + rng.choice([1, 2, 8, 100]) :]


def _overwrite(content, rng, others):
    at, size = _place(content, rng), rng.choice([1, 2, 4, 8])
    number = rng.choice(_EDGES) % 2 ** (8 * size)
    new = number.to_bytes(size, rng.choice(["little", "big"]))
    return content[:at] + new + content[at + size :]


def _splice(content, rng, others):
    source = rng.choice(others)
    start, at = _place(source, rng), _place(content, rng)
    length = rng.choice([4, 40, 400, len(source)])
    keep = at + rng.choice([0, length])
    return content[:at] + source[start : start + length] + content[keep:]


def _number(content, rng, others):
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:200_000]))
    if not found:
        return _flip(content, rng, others)
    match = rng.choice(found)
    new = rng.choice(_NUMBERS).encode()
    return content[: match.start()] + new + content[match.end() :]


_BYTES = [_flip, _flip, _truncate, _insert, _remove, _overwrite, _overwrite, _splice, _number]


def _json(content, rng):
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        lines = content.splitlines(keepends=True)
        if len(lines) > 1:  # an entry a line
            number = rng.randrange(len(lines))
            lines[number] = damage(lines[number].strip(), rng) + b"\n"
            return b"".join(lines)
        return _flip(content, rng, ())
    nodes = [(None, None)]
    stack = [value]
    while stack and len(nodes) < 5000:
        node = stack.pop()
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, inner in list(pairs) if isinstance(node, dict | list) else ():
            nodes.append((node, key))
            stack.append(inner)
        stack = [inner for inner in stack if isinstance(inner, dict | list)]
    parent, key = rng.choice(nodes)
    new = rng.choice(_VALUES)
    if parent is None:
        value = new
    else:
        match rng.choice(["replace", "replace", "remove", "double", "wrap"]):
            case "replace":
                parent[key] = new
            case "remove":
                del parent[key]
            case "double" if isinstance(parent, list):
                parent.append(parent[key])
            case "double":
                parent[rng.choice(["", "x", key + "x"])] = parent[key]
            case "wrap":
                parent[key] = rng.choice([[parent[key]], {"a": parent[key]}, str(parent[key])])
    return json.dumps(value).encode()


def _npy(content, rng):
    """Write another header before the data of an array."""
    length = int.from_bytes(content[8:10], "little")
    shape = re.search(rb"'shape': (\([^)]*\))", content[:200])
    descr = re.search(rb"'descr': ('[^']*')", content[:200])
    if not shape or not descr:
        return _flip(content, rng, ())
    parts = {"shape": shape[1].decode("latin1"), "descr": descr[1].decode("latin1")}
    shape, descr = {"shape": rng.choice(_SHAPES)}, {"descr": rng.choice(_DTYPES)}
    parts |= rng.choice([shape, descr, shape | descr, {"fortran": "True"}])
    order = parts.get("fortran", rng.choice(["False", "False", "0", "None"]))
    text = f"{{'descr': {parts['descr']}, 'fortran_order': {order}, 'shape': {parts['shape']}, }}\n"
    version = rng.choice([b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\0\0"])
    size = struct.pack("<I" if version[0] > 1 else "<H", len(text) % 65536)
    return b"\x93NUMPY" + version + size + text.encode("latin1") + content[10 + length :]


def _zip(content, rng):
    """Write an archive anew with a member that was damaged, swapped, renamed or doubled."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(info.file_size for info in archive.infolist()) > 2**26:  # a bomb already
                return _flip(content, rng, ())
            members = {info.filename: archive.read(info) for info in archive.infolist()}
            kind = archive.infolist()[0].compress_type
    except Exception:  # a member that was damaged before
        return _flip(content, rng, ())
    if not members:
        return _flip(content, rng, ())
    name, other = rng.choice(sorted(members)), rng.choice(sorted(members))
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", rng.choice([kind, kind, zipfile.ZIP_DEFLATED])) as archive:
        match rng.choice(["damage"] * 6 + ["swap", "rename", "remove", "add", "bomb", "claim"]):
            case "damage":
                members[name] = damage(members[name], rng, [*members.values()])
            case "swap":
                members[name], members[other] = members[other], members[name]
            case "rename":
                renamed = rng.choice(
                    ["../x", " ", "/x", name + "x", name.upper(), "dense:a/b/c.npy"]
                )
                members[renamed] = members.pop(name)
            case "remove":
                del members[name]
            case "add":
                members[name + "/" + name] = members[name]
            case "bomb":
                _add_bomb(archive, name, members.pop(name), rng)
            case "claim":
                _add_claim(archive, name, members.pop(name), rng)
        for member, data in members.items():
            archive.writestr(member, data)
    return output.getvalue()


def _model(content, rng):
    """Damage a model file's header or its sections, most often with right checksums."""
    head = struct.Struct("<8sIIII")
    try:
        magic, version, packed, *_ = head.unpack(content[: head.size])
        text = zlib.decompress(content[head.size : head.size + packed])
        header = json.loads(text)
        sections = [size for _, _, size, _ in header["files"]]
        sections += [entry["raw_bytes"] for entry in header["tensors"]]
        sections += [size for size, _ in header["chunks"]]
        payload, rest = [], content[head.size + packed :]
        for size in sections:
            payload.append(rest[:size])
            rest = rest[size:]
    except Exception:  # damaged before
        return _flip(content, rng, ())
    if payload and rng.random() < 0.4:
        number = rng.randrange(len(payload))
        payload[number] = damage(payload[number], rng)
        files, tensors = len(header["files"]), len(header["tensors"])
        size, checksum = len(payload[number]), zlib.crc32(payload[number])
        if number < files:
            header["files"][number][2:] = [size, checksum]
        elif number < files + tensors:
            header["tensors"][number - files] |= {"raw_bytes": size, "checksum": checksum}
        else:
            header["chunks"][number - files - tensors] = [size, checksum]
        text = json.dumps(header).encode()
    else:
        part = rng.choice(["tensors", "tensors", "tables", "chunks", "files", "notes", None])
        if part is None or not isinstance(header.get(part), dict | list):
            text = _json(text, rng)
        else:
            inner = _json(json.dumps(header[part]).encode(), rng).decode()
            parts = [json.dumps({key: header[key]})[1:-1] for key in header if key != part]
            text = "{{{}}}".format(", ".join([*parts, f'"{part}": {inner}'])).encode()
    stored = zlib.compress(text)
    start = head.pack(magic, version, len(stored), len(text), zlib.crc32(stored))
    return start + stored + b"".join(payload)


@functools.cache
def _zeros(byte):
    """Return 64 MiB of one byte as a run of deflate blocks that can be repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes([byte]) * 2**26) + packer.flush(zlib.Z_FULL_FLUSH)


def _add_bomb(archive, name, content, rng):
    """Add 3 GiB as 3 MB: blanks, or an array whose header says so."""
    size, byte, head = 3 * GIB, 0x20, content[:1]
    if content[:6] == b"\x93NUMPY":
        head, byte = io.BytesIO(), 0
        shape = (size // 4,) if rng.random() < 0.5 else (size // 64, 16)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, header)
        head = head.getvalue()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH) + _zeros(byte) * 48
    claimed = rng.choice([len(head) + size, len(head) + size, len(content), 2**31])
    _add_raw(archive, name, packed, claimed, zipfile.ZIP_DEFLATED)


def _add_claim(archive, name, content, rng):
    """Add a member whose directory entry claims another size than it has."""
    packed = zlib.compress(content, wbits=-15)
    claimed = rng.choice([0, 1, len(content) - 1, len(content) + 1, 2**31, 2**32 - 1, 2**40])
    _add_raw(archive, name, packed, max(claimed, 0), zipfile.ZIP_DEFLATED)


def _add_raw(archive, name, packed, claimed, kind):
    archive.writestr(zipfile.ZipInfo(name), packed)
    info = archive.getinfo(name)  # the directory, which readers trust, is written at the end
    info.compress_type, info.file_size = kind, claimed


def rng_of(reader, seed, number):
    """Return the generator of one mutation, the same on every machine."""
    return random.Random(f"{reader}:{seed}:{number}")

"""The two files of onnxruntime-web that a page needs, from npm or from a folder."""

import base64
import hashlib
import http.client
import io
import os
import pathlib
import tarfile
import urllib.request
from collections.abc import Callable

from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import FOREIGN, foreign_errors, new_folder, read_bytes

VERSION = "1.30.0"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
_REGISTRY = "https://registry.npmjs.org"
_INTEGRITY = (  # SHA-512 of the package, as npm states it
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
_CHECKSUMS = {  # SHA-256
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_MAX_BYTES = 2**26  # of the package, and of each file
_SECONDS = 60  # without an answer
_DAMAGE = (tarfile.TarError, *FOREIGN)


def runtime_files(
    folder: str | os.PathLike = "", report: Callable[[str], None] = print
) -> dict[str, bytes]:
    """Return `SCRIPT` and `WASM` of onnxruntime-web `VERSION`.

    Args:
        folder: the unpacked npm package, or its folder `dist`; by default the package is fetched
            once from npm (or the registry `NPM_CONFIG_REGISTRY`) into the user's cache folder.
        report: takes one line where something is fetched.

    Raises:
        ConfigError: another version than this page is tested with.
        DataError: a file is missing, or the package cannot be fetched.
    """
    if folder:
        places = [pathlib.Path(folder, part) for part in ("", "dist", "package/dist")]
        place = next((place for place in places if (place / SCRIPT).exists()), places[0])
        return {name: _read(place / name) for name in _CHECKSUMS}
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    place = pathlib.Path(cache) / "sparsecap_jax" / f"onnxruntime-web-{VERSION}"
    if not place.exists():
        content = _unpacked(_fetch(report))
        try:
            with new_folder(place) as written:
                for name in content:
                    (written / name).write_bytes(content[name])
        except OSError:
            if not place.exists():  # else another process was faster
                raise
    return {name: _read(place / name) for name in _CHECKSUMS}


def _read(path: pathlib.Path) -> bytes:
    content = read_bytes(path, f"a file of onnxruntime-web {VERSION}", max_bytes=_MAX_BYTES)
    if hashlib.sha256(content).hexdigest() != _CHECKSUMS[path.name]:
        raise ConfigError(f"{path}: not that of onnxruntime-web {VERSION}; expected this version")
    return content


def _fetch(report: Callable[[str], None]) -> bytes:
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or _REGISTRY
    url = f"{registry.rstrip('/')}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    advice = "--onnxruntime_web=DIR takes the npm package from a folder"
    if not url.startswith("https://"):
        raise ConfigError(f"{url}: expected a registry at https://; {advice}")
    report(f"fetching {url} (33 MB, once)")
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            content = answer.read(_MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url}: cannot be fetched: {error}; {advice}") from error
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != _INTEGRITY:
        raise DataError(f"{url}: not the package that npm published; {advice}")
    return content


def _unpacked(package: bytes) -> dict[str, bytes]:
    with (
        foreign_errors("onnxruntime-web: a damaged package", errors=_DAMAGE),
        tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as files,
    ):
        return {name: _member(files, f"package/dist/{name}") for name in _CHECKSUMS}


def _member(files: tarfile.TarFile, name: str) -> bytes:
    file = files.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file.read()

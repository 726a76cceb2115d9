"""Readers of what a web page is written from."""

import hashlib
from unittest import mock

from fuzz_reader import reader

from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.exporting import web_runtime

FILES = {web_runtime.SCRIPT: b"export {};\n", web_runtime.WASM: bytes(range(200))}
SUMS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


def _runtime(folder):
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


@reader("web:runtime", errors=(DataError, ConfigError), make=_runtime)
def read_runtime(folder):
    """Files of another content than the published ones are refused."""
    with mock.patch.object(web_runtime, "_CHECKSUMS", SUMS):
        return web_runtime.runtime_files(folder)

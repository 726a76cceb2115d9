"""The HTTP service (`sparsecap serve`)."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.service.limits import Limits
from sparsecap_jax.settings import build, optional_package


def serve(
    checkpoint: str | pathlib.Path | Sequence[str | pathlib.Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    site: str | pathlib.Path | None = None,
    backend: str = "sparse",
    report: Callable[[str], None] = print,
    **limits: Any,
) -> None:
    """Answer requests for captions until SIGTERM or SIGINT.

    Args:
        checkpoint: as in `Captioner.load`.
        host: address to listen on; by default this machine's own programs alone reach it.
        port: its port; 0 for any free one.
        site: folder of static files whose `index.html` is the front page; by default a form.
        backend: see `Captioner.load`; all but "sparse" compile for each new size of a batch.
        report: takes one line at a time.
        **limits: fields of `service.limits.Limits`.

    Raises:
        CheckpointError: the checkpoint is missing or corrupt.
        ConfigError: a package is missing, a limit is out of range, there is no front page in
            `site`, or the address cannot be listened on.
    """
    for module in ("starlette", "uvicorn", "prometheus_client"):
        optional_package(module, "serve", "the service")
    bounds = build(Limits, limits, "limits")
    folder = pathlib.Path(site) if site else None
    if folder and not (folder / "index.html").is_file():
        raise ConfigError(f"site: {folder / 'index.html'}: no such file; expected a front page")
    captioner = Captioner.load(checkpoint, backend=backend)
    try:
        _ = captioner.extractor
    except ConfigError as error:
        report(f"photos are refused: {error}")
    from sparsecap_jax.service.app import make_app
    from sparsecap_jax.service.server import run

    app = make_app(captioner, bounds, site=folder, pad_batches=backend != "sparse")
    run(app, host, port, bounds, report)

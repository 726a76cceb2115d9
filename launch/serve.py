r"""Serve captions over HTTP: photos or features in, JSON out, requests in batches.

sparsecap serve
sparsecap serve --checkpoint=runs/demo/supermask --port=9000 --site=site

    curl --data-binary @photo.jpg -H "Content-Type: image/jpeg" http://127.0.0.1:8000/v1/caption

Without --checkpoint, the captioner `flickr8k` of the package answers. docs/service.md
describes requests, answers, limits and metrics, and /openapi.json does so for programs. SIGTERM
and Ctrl-C end the service once the requests in flight are answered.
"""

from absl import flags

from sparsecap_jax.commands import limit_flags
from sparsecap_jax.commands.cli import run_main

CHECKPOINT = flags.DEFINE_list(
    "checkpoint", ["flickr8k"], "Run directories, model files, or names."
)
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
PORT = flags.DEFINE_integer("port", 8000, "Its port; 0 for any free one.", 0, 65535)
SITE = flags.DEFINE_string("site", None, "Folder of static files, whose index.html comes first.")
BACKEND = flags.DEFINE_enum(
    "backend", "sparse", ["auto", "sparse", "xla"], "Runtime of the model (docs/sparse_runtime.md)."
)
limit_flags.define()


def main(words: list[str]) -> None:
    """Parse flags and serve."""
    options = {"host": HOST.value, "port": PORT.value, "site": SITE.value}
    from sparsecap_jax.commands.serve import serve

    serve(CHECKPOINT.value, backend=BACKEND.value, **options, **limit_flags.values())


if __name__ == "__main__":
    run_main(main)

"""Execute notebooks of this folder and store their outputs: all, or those that are named.

python colabs/execute.py [NAME.ipynb ...]
"""

import base64
import io
import pathlib
import sys
import tempfile

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = pathlib.Path(__file__).parent


def execute(path):
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:  # where a notebook writes its files
        resources = {"metadata": {"path": folder}}
        options = {"record_timing": False, "coalesce_streams": True, "resources": resources}
        NotebookClient(notebook, **options).execute()
    store(notebook, path)


def store(notebook, path):
    """Write a notebook, its pictures with few colours and at most 900 pixels wide."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
            picture = picture.convert("RGB")
            picture.thumbnail((900, 900))
            small = io.BytesIO()
            picture.quantize(96).save(small, "png", optimize=True)
            output.data["image/png"] = base64.b64encode(small.getvalue()).decode()
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        if path.name in sys.argv[1:] or not sys.argv[1:]:
            print(path.name, flush=True)
            execute(path)

"""Execute notebooks of this folder and store their outputs: all, or those that are named.

python colabs/execute.py [NAME.ipynb ...]
"""

import pathlib
import sys
import tempfile

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent


def execute(path):
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:  # where a notebook writes its files
        resources = {"metadata": {"path": folder}}
        options = {"record_timing": False, "coalesce_streams": True, "resources": resources}
        NotebookClient(notebook, **options).execute()
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        if path.name in sys.argv[1:] or not sys.argv[1:]:
            print(path.name, flush=True)
            execute(path)

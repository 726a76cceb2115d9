"""The photos that come with the package, and the command that captions them."""

import re
import subprocess
import sys

from PIL import Image

from sparsecap_jax.photos.images import EXAMPLES, list_photos

# What flickr8k says on its training machine: a cat, a cup of coffee, a man with a camera.
CAPTIONS = {
    "cat.jpg": "a black and white dog is playing with a ball in its mouth",
    "coffee.jpg": "a white and white dog is sitting on a wooden table",
    "photographer.jpg": "a man in a black shirt is standing in front of a bar",
}


def test_the_console_command_captions_them_without_jax():
    code = (
        "import atexit, sys; atexit.register(lambda: print([m for m in ('jax', 'flax') if m in "
        "sys.modules])); from sparsecap_jax.commands.console import main; "
        "sys.argv[:] = ['sparsecap', 'caption', '--example']; main()"
    )
    command = [sys.executable, "-c", code]
    *lines, loaded = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines == [f"{EXAMPLES / name}: {text}" for name, text in CAPTIONS.items()]
    assert loaded == "[]"


def test_they_are_small_and_each_has_its_licence():
    photos = list_photos(EXAMPLES)
    assert [path.name for path in photos] == [*CAPTIONS]
    assert sum(path.stat().st_size for path in photos) < 150_000
    rows = re.findall(r"^\| `(\S+)` .*\| CC0", (EXAMPLES / "LICENCES.md").read_text(), re.MULTILINE)
    assert sorted(rows) == [*CAPTIONS]
    for path in photos:
        with Image.open(path) as photo:
            assert not photo.getexif() and photo.format == "JPEG"

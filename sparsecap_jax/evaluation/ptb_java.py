"""The Java PTBTokenizer that pycocoevalcap carries, and its comparison with the Python one.

    python -m sparsecap_jax.evaluation.ptb_java [FILE ...]

compares the two on the official COCO 2014 captions (they lie inside pycocoevalcap) and on further
files: COCO annotations, Karpathy splits, {id: [captions]}, or plain text with one caption a line.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.ptb_tokenizer import PUNCTUATION, tokenize_captions

_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
_COCO = ("coco/annotations/captions_train2014.json", "coco/annotations/captions_val2014.json")
# What Java takes for the end of a line. pycocoevalcap replaces "\n" only, and any of the others in
# a caption shifts all that follow to the wrong image.
_LINE_ENDS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))


def java_available() -> bool:
    """Whether a `java` program is on the path."""
    return shutil.which("java") is not None


def toolkit_dir() -> pathlib.Path:
    """Folder of the installed pycocoevalcap."""
    import pycocoevalcap

    return pathlib.Path(list(pycocoevalcap.__path__)[0])


def java_tokenize_captions(captions: Sequence[str]) -> list[str]:
    """The counterpart of `ptb_tokenizer.tokenize_captions`, by the Java program.

    Args:
        captions: captions in order; the program sees them as the lines of one file.

    Returns:
        One string per caption, lower case, without punctuation, separated by single blanks.

    Raises:
        DataError: when the program fails, or does not return one line per caption.
    """
    if not captions:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "captions.txt")
        lines = [caption.translate(_LINE_ENDS) for caption in captions]
        path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
        command = ["java", "-cp", str(toolkit_dir() / _JAR), "edu.stanford.nlp.process.PTBTokenizer"]
        command += ["-preserveLines", "-lowerCase", str(path)]
        done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise DataError(f"the Java tokenizer failed: {done.stderr.decode(errors='replace')[-300:]}")
    output = done.stdout.decode("utf-8").split("\n")
    if len(output) < len(captions):
        found = f"{len(output)} lines for {len(captions)} captions"
        raise DataError(f"the Java tokenizer returned {found}; one line per caption is expected")
    return [
        " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)
        for line in output[: len(captions)]
    ]

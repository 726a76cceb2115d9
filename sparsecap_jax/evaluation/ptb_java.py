"""Java PTBTokenizer of pycocoevalcap, and its comparison with the Python one.

    python -m sparsecap_jax.evaluation.ptb_java [FILE ...]

compares the two on the official COCO 2014 captions, which pycocoevalcap contains, and on further
files: COCO annotations, Karpathy splits, {id: [captions]}, or plain text with one caption a line.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from sparsecap_jax.data.caption_files import OFFICIAL, official_captions
from sparsecap_jax.data.records import read_lines
from sparsecap_jax.errors import DataError, SparsecapError
from sparsecap_jax.evaluation.caption_files import load_references
from sparsecap_jax.evaluation.ptb_tokenizer import PUNCTUATION, tokenize_captions
from sparsecap_jax.files import foreign_errors

_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
_PATIENCE = 300.0  # seconds; all of COCO takes 8
# Characters that end a line for Java. pycocoevalcap replaces "\n" only: any other in a caption
# shifts all following captions to the wrong image.
_LINE_ENDS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))


def java_available() -> bool:
    """Return whether a `java` program is on the path."""
    return shutil.which("java") is not None


def java_tokenize_captions(captions: Sequence[str]) -> list[str]:
    """Tokenize as `ptb_tokenizer.tokenize_captions` does, with the Java program.

    Raises:
        DataError: the program fails, or does not return one line per caption.
    """
    import pycocoevalcap

    if not captions:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "captions.txt")
        lines = [caption.translate(_LINE_ENDS) for caption in captions]
        path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
        jar = pathlib.Path(next(iter(pycocoevalcap.__path__)), _JAR)
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
        command += ["-preserveLines", "-lowerCase", str(path)]
        with foreign_errors("the Java tokenizer failed"):
            try:
                done = subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE)
            except subprocess.TimeoutExpired as error:
                problem = f"no end within {_PATIENCE:.0f} s"
                raise DataError(f"the Java tokenizer failed: {problem}") from error
    if done.returncode:
        raise DataError(f"the Java tokenizer failed: {done.stderr.decode(errors='replace')[-300:]}")
    output = done.stdout.decode("utf-8").split("\n")
    if len(output) < len(captions):
        counts = f"{len(output)} lines for {len(captions)} captions"
        raise DataError(f"the Java tokenizer returned {counts}; expected one line per caption")
    return [
        " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)
        for line in output[: len(captions)]
    ]


def coco_captions() -> list[str]:
    """Read the 616,767 captions of COCO 2014, train then val, from pycocoevalcap itself."""
    files = (json.loads(official_captions(name)) for name in OFFICIAL)
    return [annotation["caption"] for file in files for annotation in file["annotations"]]


def compare(captions: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the captions on which the tokenizers differ: (caption, by Java, by Python)."""
    java, python = java_tokenize_captions(captions), tokenize_captions(captions)
    return [row for row in zip(captions, java, python, strict=True) if row[1] != row[2]]


def _read(path: str) -> list[str]:
    if path.endswith((".json", ".jsonl")):
        return [text for texts in load_references(path).values() for text in texts]
    lines = read_lines(pathlib.Path(path), "captions, one a line")
    return [line.split("\t")[-1] for line in lines if line]


def main(paths: Sequence[str]) -> int:
    """Compare the tokenizers on COCO and on `paths`; returns the number of differences."""
    files = {path: _read(path) for path in paths}
    corpora = {"COCO 2014": coco_captions(), **files}
    differences = 0
    for name, captions in corpora.items():
        start = time.perf_counter()
        rows = compare(captions)
        seconds = time.perf_counter() - start
        print(f"{name}: {len(captions)} captions, {len(rows)} differ ({seconds:.1f} s)")
        for caption, java, python in rows[:20]:
            print(f"  {caption!r}\n    Java   {java!r}\n    Python {python!r}")
        differences += len(rows)
    return differences


if __name__ == "__main__":
    try:
        sys.exit(min(main(sys.argv[1:]), 1))
    except SparsecapError as error:
        sys.exit(f"error: {error}")

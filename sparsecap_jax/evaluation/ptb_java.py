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
from collections.abc import Hashable, Mapping, Sequence

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.caption_files import load_references
from sparsecap_jax.evaluation.ptb_tokenizer import PUNCTUATION, regroup, tokenize_captions

_PROGRAM = "edu.stanford.nlp.process.PTBTokenizer"
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

    return pathlib.Path(next(iter(pycocoevalcap.__path__)))


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
        command = ["java", "-cp", str(toolkit_dir() / _JAR), _PROGRAM]
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


def java_tokenize(captions: Mapping[Hashable, Sequence[str]]) -> dict[Hashable, list[str]]:
    """`java_tokenize_captions` over the captions of many images; keeps keys and order."""
    return regroup(captions, java_tokenize_captions)


def coco_captions() -> list[str]:
    """The 616,767 captions of COCO 2014, train then val, out of pycocoevalcap itself."""
    captions = []
    with zipfile.ZipFile(toolkit_dir() / "spice/spice-1.0.jar") as archive:
        for name in _COCO:
            found = json.loads(archive.read(name))["annotations"]
            captions += [annotation["caption"] for annotation in found]
    return captions


def compare(captions: Sequence[str]) -> list[tuple[str, str, str]]:
    """Captions on which the tokenizers differ: (caption, by Java, by Python)."""
    java, python = java_tokenize_captions(captions), tokenize_captions(captions)
    rows = zip(captions, java, python, strict=True)
    return [row for row in rows if row[1] != row[2]]


def _read(path: str) -> list[str]:
    if path.endswith(".json"):
        return [text for texts in load_references(path).values() for text in texts]
    lines = pathlib.Path(path).read_text("utf-8").split("\n")
    return [line.split("\t")[-1] for line in lines if line]


def main(paths: Sequence[str]) -> int:
    """Compare the tokenizers on COCO and on `paths`; returns the number of differences."""
    corpora = {"COCO 2014": coco_captions(), **{path: _read(path) for path in paths}}
    differences = 0
    for name, captions in corpora.items():
        start = time.perf_counter()
        found = compare(captions)
        seconds = time.perf_counter() - start
        print(f"{name}: {len(captions)} captions, {len(found)} differ ({seconds:.1f} s)")
        for caption, java, python in found[:20]:
            print(f"  {caption!r}\n    Java   {java!r}\n    Python {python!r}")
        differences += len(found)
    return differences


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))

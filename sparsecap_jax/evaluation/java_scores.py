"""METEOR 1.5 and SPICE: Java programs that score while Python does the rest."""

import concurrent.futures
import contextlib
import gzip
import io
import itertools
import math
import os
import pathlib
import re
import select
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from sparsecap_jax.errors import DataError, SparsecapError
from sparsecap_jax.evaluation._paraphrases import paraphrase_rows
from sparsecap_jax.files import foreign_errors, read_json, write_json
from sparsecap_jax.machine import cores

METEOR_JAR, _PARAPHRASES = "meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz"
SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
SPICE_PAGE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
_PATIENCE = 300.0  # seconds that METEOR may take to answer, start included
_SPICE_PATIENCE = (600.0, 2.0)  # seconds of SPICE for all images, and for each
_WORTH_ANOTHER = 1000  # images that keep METEOR busy for longer than it takes to start
_NORMALIZED = 1.7  # time of a line whose text is normalised, as a multiple of one that is not
_STATISTICS = 23
# Quick to start, and the same arithmetic. Where a Java does not know one of them, it goes without.
_FLAGS = ("-XX:+IgnoreUnrecognizedVMOptions", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
# SPICE looks into classes of Java itself, for which Java 9 and later want to be told.
_OPENED = ("java.lang", "java.math", "java.net", "java.text", "java.util", "java.util.concurrent")

MeteorScores = tuple[float, list[float], Float[np.ndarray, "N 23"]]


def _toolkit(name: str | os.PathLike) -> pathlib.Path:
    import pycocoevalcap

    return pathlib.Path(next(iter(pycocoevalcap.__path__)), name)


@contextlib.contextmanager
def meteor(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> Iterator[concurrent.futures.Future[MeteorScores]]:
    """Start METEOR and yield what becomes its scores; its processes end with the block.

    Args:
        captions: tokens of one caption of each of N images, separated by blanks.
        references: tokens of their references.

    Returns:
        A future of the corpus' score, the images', and the statistics that are summed over images.
        Its `result` raises a SparsecapError where the program fails, dies or does not answer.
    """
    lines = []
    for caption, texts in zip(captions, references, strict=True):
        caption = caption.replace("|||", "").replace("  ", " ")  # as pycocoevalcap does
        lines.append(" ||| ".join(("SCORE", *texts, caption)))
    count = min(cores(), 1 + len(lines) // _WORTH_ANOTHER)
    normalize, shares = _shared(lines, count)
    with (
        tempfile.TemporaryFile() as errors,
        contextlib.ExitStack() as running,
        concurrent.futures.ThreadPoolExecutor(1 + 3 * count) as pool,
    ):
        started = [running.enter_context(_started(errors, does)) for does in normalize]
        processes = [process for process, _ in started]
        try:
            with foreign_errors("METEOR: its paraphrases", SparsecapError):
                texts = [*captions, *itertools.chain(*references)]
                rows = b"".join(paraphrase_rows(_toolkit(_PARAPHRASES), texts))
            content = gzip.compress(rows, 1)
            for _, table in started:
                pool.submit(_write_all, table, content)
            yield pool.submit(_converse, processes, lines, shares, pool, errors)
        finally:
            for process in processes:
                process.kill()


def _shared(lines: Sequence[str], count: int) -> tuple[list[bool], list[list[int]]]:
    """Share lines among processes, for about equal times.

    Normalising text takes METEOR a third of its time and leaves plain words as they are. So only
    some of the processes normalise, and lines that need it go to those.

    Returns:
        Whether each process normalises, and the numbers of its lines.
    """
    plain = re.compile("SCORE [0-9a-z ]*").fullmatch
    odd = {n for n, line in enumerate(lines) if not plain(line.replace(" ||| ", " "))}
    sizes = [len(line) for line in lines]
    of_odd = sum(sizes[n] for n in odd)
    part = _NORMALIZED * of_odd / (_NORMALIZED * of_odd + sum(sizes) - of_odd)
    normalizing = math.ceil(count * part)
    paces = [_NORMALIZED] * normalizing + [1.0] * (count - normalizing)
    times = [0.0] * count
    shares: list[list[int]] = [[] for _ in range(count)]
    for n in [*sorted(odd), *(n for n in range(len(lines)) if n not in odd)]:
        takers = range(normalizing if n in odd else count)
        at = min(takers, key=lambda at: times[at] + paces[at] * sizes[n])
        times[at] += paces[at] * sizes[n]
        shares[at].append(n)
    return [at < normalizing for at in range(count)], shares


@contextlib.contextmanager
def _started(errors: IO[bytes], normalize: bool) -> Iterator[tuple[subprocess.Popen, IO[bytes]]]:
    """Start Java and yield it with the file that takes its table of paraphrases, a pipe."""
    given, taken = os.pipe()
    command = ["java", *_FLAGS, "-Xmx2G", "-jar", str(_toolkit(METEOR_JAR)), "-", "-", "-stdio"]
    command += ["-l", "en", *["-norm"] * normalize, "-a", f"/dev/fd/{given}"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
    with open(taken, "wb", buffering=0) as table:
        try:
            with foreign_errors("METEOR: java", SparsecapError):
                process = subprocess.Popen(command, pass_fds=[given], **pipes)
        finally:
            os.close(given)
        try:
            yield process, table
        finally:
            process.kill()
            for pipe in _pipes(process):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            process.wait()


def _pipes(process: subprocess.Popen) -> tuple[IO[bytes], IO[bytes]]:
    """Return the pipes to and from a process, both of which it was started with."""
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _write_all(file: IO[bytes], content: bytes) -> None:
    """Write and close; a reader that has died shows where its answers are read."""
    with contextlib.suppress(BrokenPipeError), io.BufferedWriter(file) as buffered:
        buffered.write(content)


def _converse(
    processes: Sequence[subprocess.Popen],
    lines: Sequence[str],
    shares: Sequence[Sequence[int]],
    pool: Executor,
    errors: IO[bytes],
) -> MeteorScores:
    """Ask for the statistics of each image, shared by the processes, then for the scores of all."""

    def ask(process: subprocess.Popen, requests: Sequence[str], answers: int) -> list[str]:
        asked, answered = _pipes(process)

        def write() -> None:
            with contextlib.suppress(BrokenPipeError):  # the reader below finds that it has died
                asked.write("".join(f"{line}\n" for line in requests).encode())
                asked.flush()

        writing = pool.submit(write)
        received = b""
        count = 0
        while count < answers:
            if not select.select([answered], [], [], _PATIENCE)[0]:
                process.kill()
                raise SparsecapError(f"METEOR failed: no answer within {_PATIENCE:.0f} s")
            block = os.read(answered.fileno(), 1 << 16)
            if not block:
                errors.seek(0)
                output = errors.read().decode(errors="replace").strip()
                reason = output[-300:] or "it ended before it had answered"
                raise SparsecapError(f"METEOR failed: {reason}")
            received += block
            count += block.count(b"\n")
        writing.result()
        return received.decode(errors="replace").splitlines()

    asked = [
        pool.submit(ask, process, [lines[number] for number in share], len(share))
        for process, share in zip(processes, shares, strict=True)
    ]
    answered = [part.result() for part in asked]
    with foreign_errors("METEOR failed: not numbers", SparsecapError):
        answers = [""] * len(lines)
        for share, part in zip(shares, answered, strict=True):
            for number, answer in zip(share, part, strict=True):
                answers[number] = answer
        table = np.array([row.split() for row in answers], np.float64)
        statistics = table.reshape(len(lines), _STATISTICS)
        # METEOR adds no chunk for a caption that is its reference.
        whole = np.all(statistics[:, [0, 1]] == statistics[:, [21, 22]], axis=1)
        statistics[whole & (statistics[:, 20] == 1), 20] = 0
        evaluation = [" ||| ".join(("EVAL", *answers))]
        *each, total = map(float, ask(processes[0], evaluation, len(lines) + 1))
    return total, each, statistics


def meteor_of_sums(sums: Float[np.ndarray, "*N 23"]) -> Float[np.ndarray, "*N"] | float:
    """Return METEOR 1.5 (English, task "rank") of statistics that are summed over images."""
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    # Matches of content and function words, in captions and references, by kind of match.
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    content, content_r, function, function_r = np.moveaxis(stages, -1, 0) @ [1.0, 0.6, 0.8, 0.6]
    length, length_r, functions, functions_r, *_, chunks, matched, matched_r = np.moveaxis(
        sums, -1, 0
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = delta * (length - functions) + (1 - delta) * functions
        weight_r = delta * (length_r - functions_r) + (1 - delta) * functions_r
        precision = (delta * content + (1 - delta) * function) / weight
        recall = (delta * content_r + (1 - delta) * function_r) / weight_r
        mean = 1 / ((1 - alpha) / precision + alpha / recall)
        penalty = gamma * (chunks / ((matched + matched_r) / 2)) ** beta
        return np.nan_to_num(mean * (1 - penalty))


def check_spice_jars(folder: str | os.PathLike) -> pathlib.Path:
    """Return the folder of CoreNLP's jars; DataError where it lacks one, with what to fetch."""
    for name in SPICE_JARS:
        if not pathlib.Path(folder, name).is_file():
            needed = f"{' and '.join(SPICE_JARS)} of {SPICE_PAGE}"
            raise DataError(f"{folder}: {name} is missing; SPICE needs {needed}")
    return pathlib.Path(folder).absolute()


def spice(
    captions: Sequence[str], references: Sequence[Sequence[str]], folder: str | os.PathLike
) -> tuple[float, list[dict[str, dict[str, float | None]]]]:
    """Return SPICE of all images, and counts and scores of each by kind ("All", "Object", ...).

    Args:
        captions: tokens of one caption of each of N images, separated by blanks.
        references: tokens of their references.
        folder: has `SPICE_JARS`; all its jars are loaded, before those of pycocoevalcap.

    Raises:
        DataError: a jar is missing.
        SparsecapError: the program fails, or takes longer than some seconds an image.
    """
    jars = [check_spice_jars(folder), _toolkit("spice"), _toolkit("spice/lib")]
    path = os.pathsep.join(str(jar / "*") for jar in jars)
    opened = " ".join(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _OPENED)
    options = f"{os.environ.get('JDK_JAVA_OPTIONS', '')} {opened}"  # Java 8 does not read them
    environment = {**os.environ, "JDK_JAVA_OPTIONS": options}
    patience = _SPICE_PATIENCE[0] + _SPICE_PATIENCE[1] * len(captions)
    pairs = enumerate(zip(captions, references, strict=True))
    rows = [{"image_id": n, "test": text, "refs": [*texts]} for n, (text, texts) in pairs]
    with tempfile.TemporaryDirectory() as work:
        asked, answered = pathlib.Path(work, "in.json"), pathlib.Path(work, "out.json")
        write_json(asked, rows)
        command = ["java", "-Xmx8G", "-cp", path, "edu.anu.spice.SpiceScorer", str(asked)]
        command += ["-out", str(answered), "-subset", "-silent"]
        with foreign_errors("SPICE: java", SparsecapError):
            try:
                done = subprocess.run(
                    command, capture_output=True, env=environment, timeout=patience, cwd=work
                )
            except subprocess.TimeoutExpired as error:
                raise SparsecapError(f"SPICE failed: no end within {patience:.0f} s") from error
        output = done.stderr.decode(errors="replace").strip()
        if done.returncode:
            if "scriptEngine" in output or "ScriptEngine" in output:
                output = (
                    f"it needs the JavaScript of Java 8 to 14, or nashorn-core's jars in {folder}"
                )
            raise SparsecapError(f"SPICE failed: {output[-300:] or 'it says nothing'}")
        results = read_json(answered, "SPICE's scores")
    with foreign_errors("SPICE failed: unknown form of its scores", SparsecapError):
        by_image = {row["image_id"]: row["scores"] for row in results}
        total = np.mean([_number(row["scores"]["All"]["f"]) for row in results])
        if sorted(by_image) != list(range(len(captions))):
            raise ValueError(f"{len(by_image)} images; expected {len(captions)}")
        each = [
            {kind: {k: _finite(v) for k, v in of.items()} for kind, of in by_image[n].items()}
            for n in range(len(captions))
        ]
    return float(total), each


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _finite(value: Any) -> float | None:
    """Return a number, None for what JSON has no number for."""
    return None if value is None or not np.isfinite(float(value)) else float(value)

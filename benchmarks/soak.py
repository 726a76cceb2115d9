"""Kill tiny training runs at random and repeat their command: the end must be that of a quiet run.

    make soak
    python benchmarks/soak.py --kills=5 --methods=gradual --report=

Each start is ended by SIGKILL, SIGTERM or SIGINT after a random line of its output and a random
time; its exit status has to be that of the signal, and its output without a traceback. A run that
comes to its end is compared bit for bit with one that was left alone: weights, checkpoints, tables,
TensorBoard points and reports; then the next run begins. Every start adds a row to
WORKDIR/soak.csv; repeating the command continues from there.
"""

import collections
import csv
import hashlib
import json
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

from absl import app, flags
from tensorboardX.proto.event_pb2 import Event

KILLS = flags.DEFINE_integer("kills", 40, "Kills of each method.", lower_bound=1)
METHODS = flags.DEFINE_list("methods", ["supermask", "gradual", "self_critical"], "What to train.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments and signals.")
WORKDIR = flags.DEFINE_string("workdir", "runs/soak", "Folder of data, runs and the table.")
REPORT = flags.DEFINE_string("report", "docs/results/soak.md", "Page of the result; empty: none.")

REPO = pathlib.Path(__file__).resolve().parents[1]
ARGUMENTS = {
    "dense": "",
    "supermask": "supermask,sparsity=0.5",
    "gradual": "mag_grad_uniform,sparsity=0.5",
    "self_critical": "scst,num_samples=2",
}
SIZES = {"embed_size": 12, "rnn_size": 16, "attention_size": 10, "dropout": 0.1}
STEPS, SAVE_EVERY = 24, 4
# Exit statuses by signal; the second: before the package has begun, or once it has finished.
SIGNALS = {"SIGKILL": (-9,), "SIGTERM": (143, -15), "SIGINT": (130, -2)}
COLUMNS = ("method", "start", "signal", "lines", "seconds", "exit", "result")
HANG = 300  # seconds after a signal


def command(folder: pathlib.Path, method: str, workdir: pathlib.Path) -> list[str]:
    """Return the command that trains a method, as a user would type it."""
    fields = {f"model.{key}": size for key, size in SIZES.items()}
    fields |= {"data.name": "karpathy", "data.dir": folder / "scenes", "data.batch_size": 8}
    fields |= {"data.eval_batch_size": 6, "train.steps": STEPS, "train.eval_every": SAVE_EVERY}
    fields |= {"train.log_every": 1, "train.steps_per_call": 1, "train.devices": 1}
    if method == "self_critical":
        fields["train.init_from"] = folder / "dense"
    script, config = REPO / "launch/train.py", REPO / "configs/toy.py"
    changes = [f"--config.{key}={value}" for key, value in fields.items()]
    source = f"--config={config}:{ARGUMENTS[method]}"
    return [sys.executable, str(script), source, f"--workdir={workdir}", *changes]


def fingerprint(workdir: pathlib.Path) -> dict[str, str]:
    """Return a digest of each file of a run whose bits should not depend on interruptions.

    Speeds are left out of the tables. Of a checkpoint the `meta` stands for all: it has the
    position in the data, the key and the checksums of weights, masks and optimizer.
    """
    digests = {}
    for path in (path for path in workdir.rglob("*") if path.is_file()):
        name, content = path.relative_to(workdir), path.read_bytes()
        if name.parts[0] == "tensorboard":
            continue
        if name.parts[0] == "checkpoints" and name.name != "metadata":
            continue
        if name.name in ("train.csv", "validation.csv"):
            rows = list(csv.DictReader(content.decode().splitlines()))
            content = json.dumps([{**row, "images_per_second": ""} for row in rows]).encode()
        digests[str(name)] = hashlib.sha256(content).hexdigest()
    points = json.dumps(tensorboard_points(workdir / "tensorboard"))
    return digests | {"tensorboard": hashlib.sha256(points.encode()).hexdigest()}


def tensorboard_points(folder: pathlib.Path) -> list[tuple[int, str, float]]:
    """Return step, name and value of the points that TensorBoard shows; speeds are left out.

    A start voids the points from its step on. A kill may leave half a record at a file's end.
    """
    points: dict[tuple[int, str], float] = {}
    for path in sorted(folder.iterdir()):
        content, place = path.read_bytes(), 0
        while len(content) >= place + 12:
            (size,) = struct.unpack_from("<Q", content, place)
            if len(content) < place + size + 16:
                break
            event = Event.FromString(content[place + 12 : place + 12 + size])
            place += size + 16
            if event.HasField("session_log"):
                points = {key: value for key, value in points.items() if key[0] < event.step}
            points |= {(event.step, one.tag): one.simple_value for one in event.summary.value}
    return [(*key, points[key]) for key in sorted(points) if "images_per_second" not in key[1]]


def differences(ours: dict[str, str], theirs: dict[str, str]) -> str:
    """Name the files that differ, or are in one of two fingerprints alone."""
    return " ".join(sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)))


def start(words: list[str], lines: int | None, delay: float, name: str) -> tuple[int, bool, str]:
    """Run a command; send a signal some seconds after it has printed so many lines.

    Args:
        words: the command.
        lines: how many, or None to let it end.
        delay: the seconds.
        name: of the signal.

    Returns:
        Exit status, whether the signal was sent, and the output.
    """
    shown = []
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, cwd=REPO, **pipe) as process:
        sent = False
        while lines is None or len(shown) < lines:
            line = process.stdout.readline()
            if not line:
                break
            shown.append(line)
        else:
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(getattr(signal, name))
                sent = True
        try:
            shown.append(process.communicate(timeout=HANG)[0])
        except subprocess.TimeoutExpired:
            process.kill()
            sys.exit(f"error: still running {HANG} s after {name}: {words}")
    return process.returncode, sent, "".join(shown)


def undisturbed(folder: pathlib.Path, method: str) -> dict:
    """Train a method without a signal, once; return its fingerprint, lines and seconds to start."""
    note = folder / f"{method}.json"
    if not note.exists():
        shutil.rmtree(folder / method, ignore_errors=True)
        begun = time.monotonic()
        words = command(folder, method, folder / method)
        with subprocess.Popen(words, cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
            times = [time.monotonic() - begun for _ in process.stdout]
        if process.returncode:
            sys.exit(f"error: {method} failed undisturbed, exit status {process.returncode}")
        values = {"lines": len(times), "startup": times[0], "files": fingerprint(folder / method)}
        note.write_text(json.dumps(values))
    return json.loads(note.read_text())


def soak(folder: pathlib.Path, method: str, table: pathlib.Path) -> None:
    """Kill runs of a method until it has had enough, and let the last one end."""
    expected, workdir = undisturbed(folder, method), folder / f"{method}_killed"
    while True:
        rows = [row for row in read(table) if row["method"] == method]
        kills = sum(bool(row["signal"]) for row in rows)
        if kills >= KILLS.value and not rows[-1]["signal"]:
            return
        rng = random.Random(f"{SEED.value} {method} {len(rows)}")
        lines, name = rng.randrange(expected["lines"]), rng.choice([*SIGNALS])
        delay = rng.random() * (0.3 if lines else expected["startup"])
        begun = time.monotonic()
        words = command(folder, method, workdir)
        last = kills >= KILLS.value
        status, sent, shown = start(words, None if last else lines, delay, name)
        seconds = round(time.monotonic() - begun, 1)
        row = {"method": method, "start": len(rows), "lines": lines if sent else "", "exit": status}
        row |= {"seconds": seconds, "signal": name if sent else ""}
        if not sent and status:
            sys.exit(f"error: {method}, start {len(rows)} failed, exit {status}: {shown[-2000:]}")
        if not sent:
            wrong = differences(fingerprint(workdir), expected["files"])
            row["result"] = f"differs: {wrong}" if wrong else "identical"
            if wrong:
                shutil.move(workdir, folder / f"{method}_{len(rows)}")
            else:
                shutil.rmtree(workdir)
        elif status not in SIGNALS[name] or (status > 0 and "Traceback" in shown):
            row["result"] = f"unclean: {shown[-2000:]}"
        append(table, row)
        what = f"{name} after {lines} lines" if sent else row["result"]
        print(f"{method} {kills + sent}/{KILLS.value} | {what} | exit {status} | {seconds} s")


def read(table: pathlib.Path) -> list[dict[str, str]]:
    """Read the rows of earlier starts."""
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def append(table: pathlib.Path, row: dict) -> None:
    """Add a row to the table."""
    with table.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS, restval="").writerow(row)


def page(rows: list[dict[str, str]]) -> str:
    """Return the result as a page of Markdown."""
    given = f"--kills={KILLS.value} --methods={','.join(METHODS.value)} --seed={SEED.value}"
    lines = [
        "# Killed runs",
        "",
        f"`python benchmarks/soak.py {given}`",
        f"(`make soak`): tiny runs of {STEPS} steps with a checkpoint every {SAVE_EVERY}, ended by",
        "random signals at random moments, from the start of Python to the last report, and",
        "repeated. The method, the seed and the number of the start decide signal and moment.",
        "",
        "Each run that came to its end was compared bit for bit with one that was left alone:",
        "weights, checkpoints (weights, masks, optimizer, key, place in the data), tables,",
        "TensorBoard points and reports. An unclean end is one by SIGTERM or SIGINT with another",
        "exit status than 143 or 130, or with a traceback; in the first tenth of a second, while",
        "Python starts, a signal ends it as it does any program.",
        "",
        "| method | kills (KILL, TERM, INT) | unclean | runs that ended | identical | different |",
        "|---|---|---|---|---|---|",
    ]
    for method in METHODS.value:
        ours = [row for row in rows if row["method"] == method]
        kills = collections.Counter(row["signal"] for row in ours if row["signal"])
        counts = ", ".join(str(kills[name]) for name in SIGNALS)
        ends = collections.Counter(row["result"].partition(":")[0] for row in ours)
        same, different = ends["identical"], ends["differs"]
        lines.append(
            f"| {method} | {kills.total()} ({counts}) | {ends['unclean']} | {same + different} | "
            f"{same} | {different} |"
        )
    return "\n".join(lines) + "\n"


def main(_: list[str]) -> None:
    """Soak all methods, and write the page."""
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's runs ignored it
    sys.path.insert(0, str(REPO))
    from sparsecap_jax.data.toy_scenes import make_toy_scenes

    folder = pathlib.Path(WORKDIR.value).resolve()
    table = folder / "soak.csv"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "scenes").exists():
        make_toy_scenes(folder / "scenes", sizes=(32, 6, 6))
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n")
    if "self_critical" in METHODS.value:
        undisturbed(folder, "dense")
    for method in METHODS.value:
        soak(folder, method, table)
    rows = read(table)
    if REPORT.value:
        (REPO / REPORT.value).write_text(page(rows))
    wrong = [row for row in rows if row["result"] not in ("", "identical")]
    if wrong:
        sys.exit(f"error: {len(wrong)} starts went wrong, first {wrong[0]}")


if __name__ == "__main__":
    app.run(main)

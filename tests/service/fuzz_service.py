"""Wrong requests to a running service, for minutes: no fault, nothing given away, no more memory.

    python tests/service/fuzz_service.py --minutes=10 --schemathesis=VENV/bin/st

Threads send damaged photos and features with random options, while schemathesis, where it is given,
asks what the OpenAPI description allows and what it does not. `make fuzz-service` does both.
"""

import argparse
import collections
import http.client
import itertools
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse

sys.path += [str(pathlib.Path(__file__).parents[1] / "fuzz")]

import numpy as np
from fuzz_mutations import damage
from service_cases import UNCLEAN, features_body, picture_body
from service_process import Service

from sparsecap_jax.photos.images import EXAMPLES

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
EXPECTED = {200, 413, 415, 422, 429, 503}
VALUES = ["", "0", "1", "3", "-1", "1e9", "nan", "true", "a", "dog", "wu_0.7", "avg_0", "a dog|cat"]
VALUES += ["greedy", "beam", "diverse_beam", "sample", "gumbel", "wu_1e308", "\0", "x" * 3000]
NAMES = ["search", "beam_size", "length_penalty", "num_groups", "diversity", "num_samples"]
NAMES += ["temperature", "top_k", "top_p", "seed", "no_repeat", "no_repeat_ngram", "suppress"]
NAMES += ["suppress_unk", "bad_endings", "min_length", "prefix", "required", "attention", "x"]
MODES = {"PNG": ("RGB", "RGBA", "P", "I;16", "1"), "JPEG": ("RGB", "CMYK", "L"), "GIF": ("P",)}
MODES |= {"WEBP": ("RGB", "RGBA"), "BMP": ("RGB",), "TIFF": ("RGB", "F"), "AVIF": ("RGB",)}


def whole_bodies():
    """Contents to damage: photos of every format, and features."""
    photos = [path.read_bytes() for path in EXAMPLES.glob("*.jpg")]
    for kind, modes in MODES.items():
        photos += [picture_body(64, 48, kind, mode) for mode in modes]
    rng = np.random.default_rng(0)
    features = rng.random((2, 1280)).round(3)
    boxes = [[0, 0, 1, 1], [0, 0, 0.5, 0.5]]
    return photos, [features_body(features, boxes=boxes, fc=features[0].tolist()).encode()]


class Attack(threading.Thread):
    """Sends damaged bodies until the time is up.

    Attributes:
        statuses: how often each status came.
        faults: what should not have been answered, at most ten.
    """

    def __init__(self, port, seed, end):
        super().__init__()
        self._port, self._end = port, end
        self._rng = random.Random(seed)
        self.statuses, self.faults = collections.Counter(), []

    def run(self):
        try:
            self._attack()
        except Exception:  # which would end the thread, and nobody would know
            self.faults.append(traceback.format_exc())

    def _attack(self):
        photos, features = whole_bodies()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while time.monotonic() < self._end and len(self.faults) < 10:
            group, kind = self._rng.choice(
                [(photos, "image/png")] * 4 + [(features, "application/json")]
            )
            body = self._rng.choice(group)
            for _ in range(self._rng.choice([0, 1, 1, 2])):
                body = damage(body, self._rng, group)
            path = f"/v1/caption?{self._query()}"
            try:
                connection.request("POST", path, body, {"Content-Type": kind})
                answer = connection.getresponse()
                text = answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                connection.close()  # turned away while the body was sent
                self.statuses[type(error).__name__] += 1
                continue
            self.statuses[answer.status] += 1
            if answer.status not in EXPECTED or UNCLEAN.search(text):
                self.faults.append(
                    f"{path} ({kind}, {len(body)} bytes): {answer.status} {text:.500}"
                )

    def _query(self):
        names = self._rng.choices(NAMES, k=self._rng.choice([0, 0, 0, 1, 1, 2, 3]))
        return urllib.parse.urlencode([(name, self._rng.choice(VALUES)) for name in names])


def schemathesis(program, url, seed):
    """Run schemathesis once; return the problem that it found, or none."""
    command = [
        str(pathlib.Path(program).absolute()),
        "run",
        f"{url}/openapi.json",
        "--checks",
        ",".join(CHECKS),
    ]
    command += ["--max-examples", "150", "--seed", str(seed), "--no-color", "--continue-on-failure"]
    with tempfile.TemporaryDirectory() as folder:  # it leaves a folder behind
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout[-5000:] + done.stderr[-1000:]


class Watch(threading.Thread):
    """Notes the service's memory twice a second until the time is up.

    Attributes:
        memory: bytes.
        faults: what ended it early.
    """

    def __init__(self, service, end):
        super().__init__()
        self._service, self._end = service, end
        self.memory, self.faults = [], []

    def run(self):
        try:
            while time.monotonic() < self._end:
                self.memory.append(self._service.metric("process_resident_memory_bytes"))
                time.sleep(0.5)
        except Exception:
            self.faults.append(traceback.format_exc())


def besiege(service, flags):
    """Attack a service, end it, and return the report."""
    end = time.monotonic() + 60 * flags.minutes
    attacks = [Attack(service.port, flags.seed + number, end) for number in range(3)]
    watch = Watch(service, end)
    for thread in (*attacks, watch):
        thread.start()
    problems, rounds = [], 0
    for seed in itertools.count(flags.seed):
        if not flags.schemathesis or time.monotonic() > end or problems:
            break
        rounds += 1
        if problem := schemathesis(flags.schemathesis, service.url, seed):
            problems.append(problem)
    for thread in (*attacks, watch):
        thread.join()
        problems += thread.faults
    health = service.ask("/healthz")[0]
    code, _, errors = service.stop(signal.SIGTERM)
    if health != 200 or code != 0 or "Traceback" in errors:
        problems.append(f"health {health}, exit status {code}: {errors[-5000:]}")
    statuses = sum((attack.statuses for attack in attacks), collections.Counter())
    if not statuses[200]:
        problems.append("no request got a caption")
    memory = memory_of(watch.memory)
    if not memory or memory["MB in the last quarter"] > 1.1 * memory["MB in the second quarter"]:
        problems.append("memory grows, or was not measured")
    return {
        "minutes": flags.minutes,
        "answers": {str(key): count for key, count in sorted(statuses.items(), key=str)},
        "rounds of schemathesis": rounds,
        **memory,
        "problems": problems,
    }


def memory_of(memory):
    """Return figures of memory that was noted twice a second; none of less than two seconds."""
    quarter = len(memory) // 4
    if not quarter:
        return {}
    parts = {
        "MB in the second quarter": np.median(memory[quarter : 2 * quarter]),
        "MB in the last quarter": np.median(memory[-quarter:]),
        "MB at most": max(memory),
    }
    return {name: round(float(value) / 1e6, 1) for name, value in parts.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--schemathesis", help="its command, `st`")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    with Service() as service:
        report = besiege(service, flags)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["problems"]))


if __name__ == "__main__":
    main()

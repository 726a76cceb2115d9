"""Requests per second and latency of the HTTP service, batched against unbatched.

python benchmarks/serving.py
python benchmarks/serving.py --checkpoint=runs/a --kinds=features

Two services take turns, one with batches of up to `--max_batch` images and one without, asked by 1,
8 and 64 clients that each send a request as soon as the last one is answered. Clients run in this
process: they use the same cores as the services do. Photos are the three of the package, features
those of their regions, or noise where the model takes features of another width. Nothing else
should run on the machine.
"""

import asyncio
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.request

import numpy as np
from absl import app, flags

CHECKPOINT = flags.DEFINE_string("checkpoint", "flickr8k-mini", "Run, model file, or name.")
KINDS = flags.DEFINE_list("kinds", ["photos", "features"], "What is sent.")
CLIENTS = flags.DEFINE_list("clients", ["1", "8", "64"], "Numbers of clients.")
QUERY = flags.DEFINE_string("query", "", "Search options, such as beam_size=5.")
BATCH = flags.DEFINE_integer("max_batch", 16, "Most images of a batch.")
SECONDS = flags.DEFINE_float("seconds", 5.0, "Time of a turn.")
TURNS = flags.DEFINE_integer("turns", 3, "Turns of each service and number of clients.")

SERVE = pathlib.Path(__file__).parents[1] / "launch/serve.py"


class Service:
    """A service in a process of its own."""

    def __init__(self, max_batch):
        command = [sys.executable, str(SERVE), "--port=0", f"--checkpoint={CHECKPOINT.value}"]
        command += [f"--max_batch={max_batch}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        self.port = int(re.search(r":(\d+)$", line.strip())[1])

    def batches(self):
        """Return the numbers of batches and of images so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        found = [re.search(rf"^sparsecap_batch_images_{part} (\S+)$", text, re.M)[1] for part in
                 ("count", "sum")]  # fmt: skip
        return np.array(found, float)


def requests_of(kind):
    """Return whole requests, as bytes."""
    from sparsecap_jax.captioner import Captioner
    from sparsecap_jax.photos.extractors import open_for
    from sparsecap_jax.photos.images import EXAMPLES

    photos, bodies, content = sorted(EXAMPLES.glob("*.jpg")), [], "image/jpeg"
    if kind == "photos":
        bodies = [photo.read_bytes() for photo in photos]
    else:
        captioner, content = Captioner.load(CHECKPOINT.value, backend="sparse"), "application/json"
        if captioner.search:
            images = captioner.extractor([open_for(captioner.extractor, one) for one in photos])
            arrays = [image.features for image in images]
        else:
            shape = 3, 36, captioner.feature_size
            arrays = np.maximum(np.random.default_rng(0).normal(size=shape) - 0.5, 0)
        for array in arrays:
            rows = [[float(f"{value:.5g}") for value in row] for row in array]
            boxes = np.linspace(0, 1, 4 * len(rows)).reshape(-1, 4).tolist()
            bodies.append(json.dumps({"features": rows, "boxes": boxes}).encode())
    head = (
        f"POST /v1/caption?{QUERY.value} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content}\r\n"
    )
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


async def client(port, requests, end, latencies):
    """Send requests one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = 0
    while time.perf_counter() < end:
        start = time.perf_counter()
        writer.write(requests[number % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(body.decode())
        latencies.append(time.perf_counter() - start)
        number += 1
    writer.close()


async def load(port, requests, clients, seconds):
    """Return the latencies of a turn, and its seconds up to the last answer."""
    start, latencies = time.perf_counter(), []
    turns = [requests[number % 3 :] + requests[: number % 3] for number in range(clients)]
    await asyncio.gather(*(client(port, turn, start + seconds, latencies) for turn in turns))
    return latencies, time.perf_counter() - start


def measure(services, requests, clients):
    """Return (requests/s, p50, p95, images of a batch) of each service, by turns."""
    found = {name: ([], [], service.batches()) for name, service in services.items()}
    for _ in range(TURNS.value):
        for name, service in services.items():
            latencies, seconds = asyncio.run(load(service.port, requests, clients, SECONDS.value))
            found[name][0].extend(latencies)
            found[name][1].append(seconds)
    results = {}
    for name, (latencies, seconds, before) in found.items():
        batches, images = services[name].batches() - before
        middle, late = np.quantile(latencies, [0.5, 0.95]) * 1e3
        results[name] = len(latencies) / sum(seconds), middle, late, images / batches
    return results


def main(argv):
    """Measure and print."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    services = {"batched": Service(BATCH.value), "unbatched": Service(1)}
    shown = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
    print(f"{CHECKPOINT.value}, batches of up to {BATCH.value}, {shown}\n")
    print("| sent | clients | batched, requests/s | p50 ms | p95 ms | images of a batch |", end="")
    print(" unbatched, requests/s | p50 ms | p95 ms | ratio |")
    print("|---|" + "--:|" * 9)
    try:
        for kind in KINDS.value:
            requests = requests_of(kind)
            for service in services.values():
                asyncio.run(load(service.port, requests, 1, 1.0))  # to warm up
            for clients in map(int, CLIENTS.value):
                results = measure(services, requests, clients)
                (rate, *times, batch), (other, *others, _) = results.values()
                cells = [kind, clients, f"{rate:.1f}", *(f"{ms:.0f}" for ms in times)]
                cells += [f"{batch:.1f}", f"{other:.1f}", *(f"{ms:.0f}" for ms in others)]
                print(
                    "| " + " | ".join(map(str, [*cells, f"{rate / other:.2f}"])) + " |", flush=True
                )
    finally:
        for service in services.values():
            service.process.terminate()
            service.process.wait()


if __name__ == "__main__":
    app.run(main)

"""Photos per second of the extractor, against XLA's grouped convolutions and against PyTorch.

python benchmarks/photo_extractor.py --torch_python=VENV/bin/python

`--torch_python` has torch and the package `efficientnet-lite-pytorch`. The network alone is timed,
and the whole way from JPEG files (640 x 480) to regions. Nothing else should run on the machine.
"""

import json
import pathlib
import subprocess
import tempfile
import time

import numpy as np
from absl import app, flags

SIZES = flags.DEFINE_list("sizes", ["224", "320"], "Sides of the squeezed photos.")
BATCH = flags.DEFINE_integer("batch", 16, "Photos at a time.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs; the fastest counts.", lower_bound=1)
TORCH = flags.DEFINE_string("torch_python", None, "Python that has the PyTorch port.")
THREADS = flags.DEFINE_list("torch_threads", ["1", "2"], "Its thread counts; the best counts.")
PORT = pathlib.Path(__file__).parent / "torch_lite0.py"


def fastest(run):
    """Seconds of the fastest of the repeats, after one to compile."""
    run()
    seconds = []
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def network_seconds(size, grouped):
    """Seconds for a batch through the network."""
    import flax.linen as nn
    import jax

    from sparsecap_jax.photos import efficientnet_linen as networks
    from sparsecap_jax.photos.efficientnet_lite import load_params

    class Grouped(nn.Module):
        """XLA's own depthwise convolution, with the same parameters."""

        kernel: int
        stride: int

        @nn.compact
        def __call__(self, inputs):
            kernel, width = (self.kernel, self.kernel), inputs.shape[-1]
            convolution = nn.Conv(width, kernel, self.stride, feature_group_count=width)
            nn.share_scope(self, convolution)
            return convolution(inputs)

    ours = networks.Depthwise
    networks.Depthwise = Grouped if grouped else ours
    try:
        apply = jax.jit(
            lambda params, x: networks.EfficientNetLite("lite0").apply({"params": params}, x)
        )
        params = jax.device_put(load_params("lite0"))
        pixels = np.random.default_rng(0).random((BATCH.value, size, size, 3), np.float32)
        return fastest(lambda: jax.block_until_ready(apply(params, pixels)))
    finally:
        networks.Depthwise = ours


def folder_seconds(size, folder):
    """Seconds from a batch of JPEG files to their regions."""
    from sparsecap_jax.photos.extractors import make_extractor
    from sparsecap_jax.photos.images import open_photo

    extractor = make_extractor("lite0", size=size, batch_size=BATCH.value)
    paths = sorted(folder.glob("*.jpg"))
    return fastest(lambda: extractor([open_photo(path) for path in paths]))


def torch_seconds(size):
    """Seconds of the PyTorch port for a batch."""
    job = {"size": size, "batch": BATCH.value, "repeats": REPEATS.value}
    times = []
    for threads in THREADS.value:
        text = json.dumps({**job, "threads": int(threads)})
        done = subprocess.run(
            [TORCH.value, PORT], input=text, capture_output=True, text=True, check=True
        )
        times.append(json.loads(done.stdout.splitlines()[-1]))
    return min(times)


def main(argv):
    """Print a table."""
    from PIL import Image

    rng = np.random.default_rng(0)
    print("photos/s | ours | grouped convolutions | PyTorch | from JPEG files")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for number in range(BATCH.value):
            small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
            small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
        for size in map(int, SIZES.value):
            seconds = [network_seconds(size, grouped=False), network_seconds(size, grouped=True)]
            seconds.append(torch_seconds(size) if TORCH.value else float("nan"))
            seconds.append(folder_seconds(size, folder))
            print(f"{size:8d} | " + " | ".join(f"{BATCH.value / s:.1f}" for s in seconds))


if __name__ == "__main__":
    app.run(main)

import pathlib
import re
import subprocess
import sys

REPO = pathlib.Path(__file__).parents[2]


def test_benchmark_runs():
    options = ["--images=16", "--width=16", "--batch_size=4", "--seconds=0.01", "--workers=0"]
    command = [sys.executable, str(REPO / "benchmarks/pipeline.py"), *options, "--epoch_images=44"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in (
        "np.load",
        "tsv",
        "hdf5",
        "lmdb",
        "array_record float16",
        "plain loop",
        "npy, cach",
    ):
        assert re.search(rf"^{name}.* images/s +\d", done.stdout, re.MULTILINE), name
    assert re.search(r"^100% .* images/s, [0-9.]+ GiB$", done.stdout, re.MULTILINE)

"""The decoding benchmark runs and reports what it measured."""

import json
import pathlib
import subprocess
import sys

REPO = pathlib.Path(__file__).parents[2]


def test_the_benchmark_runs(tmp_path):
    output = tmp_path / "figures.json"
    flags = ["--models=up_down", "--scale=20", "--batches=3", "--beams=1,2", "--repeats=1"]
    command = [sys.executable, str(REPO / "benchmarks" / "decoding.py"), *flags]
    done = subprocess.run(
        [*command, f"--output={output}"], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| batch | beam |" in done.stdout
    rows = json.loads(output.read_text())
    assert [(row["batch"], row["beam"]) for row in rows] == [(3, 1), (3, 2)]
    # The weights are changed so that captions end after about 10 tokens.
    assert 7 <= rows[0]["tokens"] <= 13
    assert all(row["seconds"] > 0 and row["reference"] is None for row in rows)

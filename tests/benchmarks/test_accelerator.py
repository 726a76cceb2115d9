"""The accelerator's command at tiny size, its budget, and the FLOPs that it counts."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

REPO = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "benchmarks"))

import accelerator_record  # noqa: E402
import model_costs  # noqa: E402
from paper_models import our_fields, paper_config  # noqa: E402

from sparsecap_jax.models import make_model  # noqa: E402


def run(*flags):
    command = [sys.executable, str(REPO / "benchmarks" / "accelerator.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)


def test_the_command_runs_and_continues(tmp_path):
    output = tmp_path / "figures.json"
    flags = ["--scale=64", "--models=up_down", "--images=2", f"--output={output}"]
    flags += ["--dtypes=float32", "--shapes=2x3", "--batches=2", "--pruners=supermask"]
    # Thirty milliseconds: the first measurement is stopped in its middle on any machine.
    first = run(*flags, "--minutes=0.0005", "--parts=rates")
    assert first.returncode == 0, first.stderr
    (row,) = json.loads(output.read_text())["rows"]
    assert row["skipped"] == "time was over before it ended"
    done = run(*flags, "--minutes=5")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {(row["part"], row["name"]): row for row in json.loads(output.read_text())["rows"]}
    assert [part for part, _ in rows][:2] == ["rates", "exact"]
    for name in ("highest", "default", "bfloat16"):
        assert rows["parity", f"up_down {name}"]["ok"]
    # The CPU against itself is exact; bfloat16 must differ, or it was not tried.
    assert rows["parity", "up_down highest"]["log_prob_error"] == 0
    assert rows["parity", "up_down bfloat16"]["log_prob_error"] > 1e-4
    assert rows["exact", "rewards"]["mean_reward"] > 0.1
    for key in (
        ("train", "up_down supermask float32"),
        ("decode", "up_down batch 2 beam 1 float32"),
        ("scst", "up_down 2x3 float32"),
    ):
        assert rows[key]["seconds"] > 0 and rows[key]["GB"] > 0 and rows[key]["flops"] > 0
    assert "| train | up_down supermask float32 |" in done.stdout
    if importlib.util.find_spec("torch") is None:
        assert rows["torch", "up_down none float32"]["skipped"] == "torch is not installed"


def record(path, seconds, clock, about=None):
    return accelerator_record.Record(path, about or {"device": "x"}, seconds, clock)


def test_what_no_longer_fits_is_skipped_and_measured_by_the_next_call(tmp_path, capsys):
    path, now = tmp_path / "rows.json", [0.0]

    def task(part, name, seconds):
        def work():
            now[0] += seconds
            return {"took": seconds}

        return accelerator_record.Task(part, name, work)

    tasks = [task("train", "a", 6.0), task("train", "b", 6.0), task("decode", "c", 1.0)]
    first = record(path, 10.0, lambda: now[0])
    for one in tasks:
        first.take(one)
    rows = json.loads(path.read_text())["rows"]
    # Another step of training is expected to take 6 s; of decoding nothing is known yet.
    assert [row.get("took") for row in rows] == [6.0, None, 1.0]
    assert rows[1]["skipped"] == "4 s left, takes about 6 s"
    second = record(path, 10.0, lambda: now[0])
    for one in tasks:
        second.take(one)
    assert [(row["name"], row["took"]) for row in second.rows] == [("a", 6), ("c", 1), ("b", 6)]
    assert now[0] == 13
    # Figures of another device are not mixed in.
    assert record(path, 10.0, lambda: now[0], {"device": "y"}).rows == []


def test_an_error_or_a_wrong_result_fails_the_command_and_not_the_other_lines(tmp_path):
    lines = record(tmp_path / "rows.json", 10.0, lambda: 0.0)

    def broken():
        raise MemoryError("out of memory\nand more")

    lines.take(accelerator_record.Task("train", "a", broken))
    assert lines.rows[0]["failed"] == "MemoryError: out of memory"
    assert lines.status() == 1
    lines.rows.clear()
    lines.take(accelerator_record.Task("parity", "b", lambda: {"ok": True}))
    assert lines.status() == 0
    lines.take(accelerator_record.Task("parity", "c", lambda: {"ok": False}))
    assert lines.status() == 1


def test_shares_of_the_measured_rates():
    rates = {"float32": 1e12, "bfloat16": 2e12, "copy": 1e11}
    row = {"name": "up_down none float32", "seconds": 2.0, "flops": 1e12, "bytes": 1e11}
    assert accelerator_record.shares(row, rates) == (0.5, 0.5)
    row |= {"name": "up_down none bfloat16"}
    assert accelerator_record.shares(row, rates) == (0.25, 0.5)  # the copy is the longer one
    assert accelerator_record.shares(row, {}) == (None, None)


def test_loops_count_as_often_as_they_run():
    x = jnp.ones((3, 5), jnp.float32)

    def scanned(w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]

    (dot,) = model_costs.dots_of(scanned, jnp.ones((5, 5), jnp.float32))
    assert dot[:3] == (2 * 3 * 5 * 5, 4 * (3 * 5 + 5 * 5 + 3 * 5), 7)
    assert dot.shapes[:2] == ((3, 5), (5, 5))

    def grows(w):
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x)

    with pytest.raises(ValueError, match="while loop"):
        model_costs.dots_of(grows, jnp.ones((5, 5), jnp.float32))

    def either(w):
        return jax.lax.cond(w[0, 0] > 0, lambda: (x @ w) @ w, lambda: x @ w)

    assert model_costs.total_flops(model_costs.dots_of(either, jnp.ones((5, 5)))) == 2 * 150


def test_the_floor_of_a_product_is_the_longest_of_three():
    found = [model_costs.Dot(100.0, 10.0, 2), model_costs.Dot(10.0, 50.0, 1)]
    assert model_costs.floor_seconds(found, 10.0, 10.0) == 2 * 10 + 5
    assert model_costs.floor_seconds(found, 10.0, 10.0, 7.0) == 2 * 10 + 7


def test_flops_of_up_down_by_hand():
    config = paper_config("up_down", 20)
    found = model_costs.model_flops(make_model(our_fields(config)), config)
    h, a, d, v, regions = 50, 512 // 20, 102, 500, 36
    image = d * h + regions * (d * h + h * a) + h * 4 * h  # fc, regions, keys, gates of fc
    word = h * 4 * h * (3 + 3)  # attention LSTM: h_lang, word, h_att; language LSTM: three more
    word += h * a + regions * (a + h) + h * v  # query, scores, attended regions, logits
    assert found == (2 * image, 2 * word)
    assert found.teacher_forcing(2, 10) == 3 * (2 * found.image + 10 * found.word)
    assert found.self_critical(2, 10) == 3 * 2 * found.image + 4 * 10 * found.word


def test_plain_pytorch_computes_the_same_log_probs():
    torch = pytest.importorskip("torch")
    from paper_models import random_captions, random_regions
    from torch_up_down import UpDown, torch_state

    from sparsecap_jax.models import init_params
    from sparsecap_jax.types import Regions

    config = paper_config("up_down", 20)
    model = make_model(our_fields(config))
    params = jax.device_get(init_params(model, jax.random.key(0)))
    other = UpDown(config).eval()
    other.load_state_dict(torch_state(params))
    regions, (tokens, _) = random_regions(2, config), random_captions(2, 3, config)
    ours = model.apply({"params": params}, Regions(*regions), tokens)
    arrays = regions.features, regions.mask.astype(np.float32), regions.fc
    seqs = torch.tensor(tokens.reshape(6, -1)).long()
    with torch.no_grad():
        theirs = other(*map(torch.tensor, arrays), seqs).numpy()
    np.testing.assert_allclose(theirs.reshape(ours.shape), ours, atol=1e-5)


def test_floors_at_other_rates_follow_from_the_sizes_of_products():
    dots = [model_costs.Dot(100.0, 10.0, 2), *[model_costs.Dot(10.0, 50.0, 1)] * 2]
    sizes = json.loads(json.dumps(model_costs.sizes_of(dots)))
    assert sizes == [[100, 10, 2], [10, 50, 2]]
    kept = [model_costs.Dot(*each) for each in sizes]
    assert model_costs.floor_seconds(kept, 10.0, 10.0) == 2 * 10 + 2 * 5
    assert model_costs.floor_seconds(kept, 100.0, 5.0) == 2 * 2 + 2 * 10  # memory bounds both

"""docs/extend.md: its blocks are one module, whose parts train, caption and load again."""

import pathlib
import re
import subprocess
import sys

import pytest
from tiny_runs import tiny_config

import sparsecap_jax as sc
from sparsecap_jax.runs.config import (
    model_section,
    objective_section,
    pruner_section,
    tokenizer_section,
)

REPO = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The folder of my_parts.py."""
    folder = tmp_path_factory.mktemp("parts")
    text = (REPO / "docs" / "extend.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    (folder / "my_parts.py").write_text("\n\n".join(blocks), encoding="utf-8")
    sys.path.insert(0, str(folder))
    sc.use_plugin("my_parts")
    yield folder
    sys.path.remove(str(folder))


def config_of(folder, **sections):
    config = tiny_config(folder / "numbers", pruner="none", eval_every=6)
    with config.unlocked():
        for name, section in sections.items():
            config[name] = section
    config.data.update(name="my_parts:numbers", feature_size=12)
    return config


@pytest.fixture(scope="module")
def run(parts):
    """A run whose every part is one of the module's."""
    config = config_of(
        parts,
        model=model_section("my_parts:MeanGru", width=8),
        pruner=pruner_section("my_parts:Farthest", sparsity=0.5, frequency=2, start_step=2),
        objective=objective_section("my_parts:Focal"),
        tokenizer=tokenizer_section("my_parts:Stems", vocab_size=20),
    )
    summary = sc.train(config, parts / "run", lambda line: None)
    return parts / "run", summary


def test_all_parts_train_together(run):
    _, summary = run
    assert summary["step"] == 12
    assert abs(summary["sparsity"] - 0.5) < 0.01


def test_the_run_loads_and_captions(run):
    captioner = sc.Captioner.load(run[0])
    assert type(captioner.run.model).__name__ == "MeanGru"
    ids = captioner.run.tokenizer.encode("numberless image", add_special=False)
    assert captioner.run.tokenizer.decode(ids) == "numbe image"
    scores = sc.evaluate(run[0], report=lambda line: None, metrics=("CIDEr",), tokenizer="python")
    assert scores["images"] == 4


def test_self_critical_training_takes_a_model_of_four_methods(run, parts):
    config = config_of(parts, model=model_section("my_parts:MeanGru", width=8))
    with config.unlocked():
        config.tokenizer = tokenizer_section("my_parts:Stems", vocab_size=20)
    config.scst.update(start_epoch=0, num_samples=2, length_buckets=1)
    config.train.update(init_from=str(run[0]), steps=2)
    assert sc.train(config, parts / "scst", lambda line: None)["step"] == 2


def test_commands_ask_for_the_plugin(run, parts):
    command = [sys.executable, str(REPO / "launch" / "evaluate.py"), f"--checkpoint={run[0]}"]
    environment = {"PATH": "", "PYTHONPATH": f"{REPO}:{parts}", "JAX_PLATFORMS": "cpu"}
    options = {"capture_output": True, "text": True, "env": environment, "cwd": parts}
    refused = subprocess.run(command, **options)
    assert refused.returncode == 1
    assert "my_parts:" in refused.stderr and "--plugin=my_parts" in refused.stderr
    assert refused.stderr.count("\n") == 1
    accepted = subprocess.run([*command, "--plugin=my_parts"], **options)
    assert accepted.returncode == 0, accepted.stderr

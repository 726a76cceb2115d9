"""Readers of run directories, their checkpoints, logs and configs."""

import contextlib
import functools

import captioner_runs
import jax
import jax.numpy as jnp
from fuzz_reader import CONFIG, reader
from fuzz_stores import text_file
from fuzz_weights import run_file, weights_file

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands import report
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.evaluation import (
    collection_plots,
    plots,
)
from sparsecap_jax.evaluation.collected import table_rows
from sparsecap_jax.files import write_json
from sparsecap_jax.pruning.step import PruneState, TrainState
from sparsecap_jax.runs import checkpoints, logs
from sparsecap_jax.runs.collection import read_run
from sparsecap_jax.runs.config import default_config
from sparsecap_jax.runs.directory import load_raw_variables
from sparsecap_jax.runs.run import Run, _note_extractor, check_workdir


def _run(folder, model="up_down"):
    captioner_runs.make_run(folder / "run", model)
    write_json(folder / "run/extractor.json", {"extractor": "lite0", "size": 64, "half": False})
    write_json(folder / "run/search.json", {"beam_size": 3, "length_penalty": "wu_0.2"})


for model in captioner_runs.SIZES:

    @reader(
        f"run:{model}",
        errors=(CheckpointError, ConfigError, DataError),
        make=functools.partial(_run, model=model),
    )
    def _read_run(folder):
        return Captioner.load(folder / "run")


def _checkpoints(folder):
    """Write checkpoints of a small state, without training."""
    params = {"a": {"kernel": jnp.ones((4, 3))}, "b": jnp.zeros(2)}
    masks = {"a": {"kernel": jnp.ones((4, 3))}}
    state = PruneState(masks, {})
    rng = jax.random.key(0)
    with contextlib.closing(checkpoints.Checkpoints(folder / "run")) as saved:
        for step in (1, 2):
            whole = TrainState(jnp.int32(step), params, state, {"m": jnp.ones(3)}, rng)
            saved.save(whole, score=float(step), data={"epoch": 1}, info={})


@reader("checkpoints", errors=(CheckpointError,), make=_checkpoints)
def _read_checkpoints(folder):
    return load_raw_variables(folder / "run")


def _logs(folder):
    (folder / "train.csv").write_text("step,loss,sparsity\n1,2.5,\n2,2.25,0.5\n")
    write_json(folder / "summary.json", {"step": 2, "best_step": None, "CIDEr": 0.5})
    weights_file(folder)


@reader("logs", make=_logs)
def _read_logs(folder):
    run = object.__new__(Run)
    vars(run).update(workdir=folder, config=CONFIG, total_steps=9, steps_per_epoch=3)
    with contextlib.closing(logs.Logs(run, 1)) as opened:
        opened.write("train", 2, {"another": 1.0})
    return plots.table_column(folder / "train.csv", "sparsity")


def _finished(folder):
    _logs(folder)
    captioner_runs.make_run(folder)


@reader("report", errors=(CheckpointError, ConfigError, DataError), make=_finished)
def _read_report(folder):
    return report.report_run(folder, lambda line: None)


def _collected(folder):
    _finished(folder)
    text = {"words": 8.5, "vocabulary": 7, "coverage": 0.5, "copied": 0.25}
    write_json(folder / "test_beam_2/scores.json", {"CIDEr": 0.5, "METEOR": None, "text": text})
    text_file(folder / "validation.csv", "step,CIDEr\n1,0.25\n2,0.5\n")
    text_file(folder / "train.csv", "step,images_per_second,sparsity\n1,100.5,0.25\n2,101,0.5\n")
    text_file(folder / "sparsity.csv", "step,embed/embedding\n1,0.5\n2,0.75\n")
    scores = {"test_beam_3": {"0009": {"CIDEr": 0.5}}, "val_beam_1": {"0009": {"CIDEr": 0.25}}}
    write_json(folder / "imported.json", {"scores": scores})


def _collected_early(folder):
    """Write what is there while a run trains."""
    _collected(folder)
    for name in ("summary.json", "model.scap"):
        (folder / name).unlink()


for kind, make in (("", _collected), (":unfinished", _collected_early)):

    @reader(f"collected{kind}", errors=(CheckpointError, ConfigError, DataError), make=make)
    def _read_collected(folder):
        run = read_run(folder, "x")
        collection_plots.tensor_curves(run)
        return table_rows([run])


@reader(
    "collected:model_file",
    errors=(CheckpointError, ConfigError, DataError),
    slower=20,
    make=run_file,
)
def _read_collected_file(folder):
    return read_run(folder / "model.scap", "x")


def _reference_results(folder):
    settings = {"caption_model": "up_down_lstm_prune", "prune_type": "supermask"}
    settings |= {"prune_sparsity_target": 0.5, "tokenizer": "word", "vocab_size": 9}
    write_json(folder / "config.json", settings)
    write_json(folder / "model_params.json", {"total": 9, "breakdown": {"embed.0.weight": 9}})
    text_file(folder / "sparsities.csv", "sparsity,nnz,embed.0.weight_pruning_mask\n0.5,7,0.25\n")
    for split in ("test_beam_2", "val_beam_1"):
        entries = [{"image_id": 1, "caption": "a dog"}]
        write_json(folder / split / "caption_0020.json", entries)
        text_file(folder / split / "scores.csv", "Step,CIDEr\n0010,0.5\n0020,0.25\n")
    (folder / "tokenizer").mkdir()
    text_file(folder / "tokenizer/train_captions.txt", "a dog\n")


@reader("reference_results", make=_reference_results)
def _read_reference_results(folder):
    return table_rows([read_run(folder, "x")])


def _config(folder):
    write_json(folder / "config.json", default_config().to_dict())
    write_json(folder / "data/extractor.json", {"extractor": "lite0", "size": 64})


@reader("config", errors=(ConfigError, DataError), make=_config)
def _read_config(folder):
    config = default_config()
    config.data.dir = str(folder / "data")
    _note_extractor(config, folder / "run")
    return check_workdir(default_config(), folder)

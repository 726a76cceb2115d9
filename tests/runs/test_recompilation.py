"""Nothing is compiled once a run has been warm: each shape has compiled what it needs."""

import contextlib

import jax
import numpy as np
import pytest
from tiny_runs import tiny_config

from sparsecap_jax.captioning.batches import caption_batches
from sparsecap_jax.captioning.engines import Compiled
from sparsecap_jax.captioning.image_options import decode_options
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.data.pipeline import make_eval_batches
from sparsecap_jax.runs.directory import load_run
from sparsecap_jax.runs.loop import train
from sparsecap_jax.runs.run import prepare_run
from sparsecap_jax.training.objectives import cross_entropy


@contextlib.contextmanager
def compilations():
    """Collect the events of programs that are compiled, or read from the compilation cache."""
    events = []

    def listen(event, seconds, **unused):
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def one_size(monkeypatch):
    """All batches pack as many words: other sizes compile steps of their own, as they should."""
    monkeypatch.setattr(
        cross_entropy,
        "words_to_pack",
        lambda mask, shards: mask.shape[-3] // shards * mask.shape[-2] * (mask.shape[-1] - 1),
    )


def count_after_warming(config, workdir):
    """Programs compiled by the end of the second validation, and by that of the last."""
    counts = []
    with compilations() as events:

        def report(line):
            if "validation: " in line:
                counts.append(len(events))

        train(config, workdir, report)
    assert len(counts) == 3
    return counts[-2:]


@pytest.mark.parametrize("pruner", ["supermask", "mag_grad_uniform"])
def test_training_and_validation_compile_once(data, tmp_path, one_size, pruner):
    before, after = count_after_warming(tiny_config(data, pruner, accumulate=1), tmp_path)
    assert 0 < before == after


def test_self_critical_training_compiles_once(data, tmp_path, one_size):
    """From the second epoch of four steps on; the second validation has seen both losses."""
    config = tiny_config(data, "none")
    config.scst.update(start_epoch=1, num_samples=2, length_buckets=1)
    before, after = count_after_warming(config, tmp_path)
    assert 0 < before == after


def test_decoding_compiles_once(data, finished, tmp_path):
    run, loaded = prepare_run(tiny_config(data), finished.workdir), load_run(finished.workdir)
    records = run.dataset.splits["val"]
    settings = {"batch_size": 2, "region_buckets": (20,), "max_seq_length": 18}
    batches = make_eval_batches(records, run.dataset.store, **settings)
    options = decode_options(SearchOptions(beam_size=2), run.tokenizer, 18)
    engine = Compiled(loaded.model, loaded.params)
    with compilations() as events:
        counts = [len(events)]
        for _ in range(2):
            captions = list(caption_batches(engine, batches, run.tokenizer, options))
            counts.append(len(events))
    assert len(captions) == len(records) == np.sum([2, 2, 2])
    assert counts[0] < counts[1] == counts[2]

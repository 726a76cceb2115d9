import jax
import jax.numpy as jnp
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import make_pruner
from sparsecap_jax.pruning.targets import Polynomial, removals


def gradual_schedule(sparsity, total_steps, steps_per_epoch=None, **fields):
    section = {"name": "mag_grad_blind", "sparsity": sparsity, **fields}
    return make_pruner(section, total_steps, steps_per_epoch).schedule


def test_counts_are_truncated_products_in_float64():
    # In float32, 0.9 * 53_120_513 is rounded to a multiple of 4.
    assert [removals(0.9, size) for size in (53_120_513, 10, 0)] == [47_808_461, 9, 0]


def test_cubic_rise():
    schedule = Polynomial(start=4, frequency=3, events=5, initial=0.0, final=0.9)
    by_hand = [0.0, 0.9 * (1 - 0.8**3), 0.9 * (1 - 0.6**3), 0.9 * (1 - 0.4**3), 0.9 * (1 - 0.2**3)]
    assert [schedule.target(e) for e in range(5)] == pytest.approx(by_hand, rel=1e-12)
    assert schedule.target(5) == 0.9
    assert schedule.end == 19


def test_events_are_located():
    schedule = Polynomial(start=4, frequency=3, events=5, initial=0.0, final=0.9)
    locate = jax.jit(schedule.locate)
    due = {step for step in range(40) if bool(locate(jnp.int32(step))[0])}
    assert due == {4, 7, 10, 13, 16, 19}
    assert [int(locate(jnp.int32(s))[1]) for s in (0, 4, 6, 7, 19, 39)] == [0, 0, 0, 1, 5, 5]


def test_defaults_of_a_long_run():
    # 15 epochs of 7,552 steps: every 1000 steps from 7,552 up to at most 56,640.
    schedule = gradual_schedule(0.9, 113_280, 7552)
    assert (schedule.start, schedule.frequency, schedule.events) == (7552, 1000, 49)


def test_defaults_of_short_runs():
    schedule = gradual_schedule(0.9, 1000, 100)
    assert (schedule.start, schedule.frequency, schedule.events) == (100, 20, 20)
    schedule = gradual_schedule(0.9, 40, 5)  # a span of 15 steps has room for 15 events
    assert (schedule.start, schedule.frequency, schedule.events) == (5, 1, 15)
    assert gradual_schedule(0.9, 1000).start == 250
    assert gradual_schedule(0.9, 1000, 700).start == 250


def test_a_schedule_that_does_not_fit_is_an_error():
    with pytest.raises(ConfigError, match="do not fit into 100 steps"):
        gradual_schedule(0.9, 100, start_step=90, frequency=10, events=2)
    with pytest.raises(ConfigError, match="do not fit into 1 steps"):
        make_pruner({"name": "mag_grad_blind"}, total_steps=1).init(jax.random.key(0), {})

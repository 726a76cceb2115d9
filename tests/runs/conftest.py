"""A dataset of a few scenes, and a run that trained on it to its end; for the tests of the loop."""

import typing

import pytest
from tiny_runs import make_data, tiny_config

from sparsecap_jax.runs.loop import train


class Finished(typing.NamedTuple):
    """A run directory, what `train` returned, and what it reported."""

    workdir: typing.Any
    summary: dict
    lines: list


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("scenes") / "toy")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A supermask run from start to end in one process."""
    workdir, lines = tmp_path_factory.mktemp("run") / "whole", []
    return Finished(workdir, train(tiny_config(data), workdir, lines.append), lines)

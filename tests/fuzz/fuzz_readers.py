"""Every reader of the package: whole files for it, and a call that reads all of them.

`READERS` must cover the registries of stores, datasets, tokenizers and extractors, and every
function of the package that opens a file; `test_fuzz.py` checks both."""

import functools
import os
from unittest import mock

import fuzz_datasets  # noqa: F401
import fuzz_photos  # noqa: F401
import fuzz_reference  # noqa: F401
import fuzz_results  # noqa: F401
import fuzz_run_folders  # noqa: F401
import fuzz_stores  # noqa: F401
import fuzz_web  # noqa: F401
import fuzz_weights  # noqa: F401
from fuzz_reader import READERS  # noqa: F401

from sparsecap_jax import models
from sparsecap_jax.captioning import attention_plot
from sparsecap_jax.evaluation import (
    sparsity_report,
)
from sparsecap_jax.interop import reference
from sparsecap_jax.photos import efficientnet_lite, extractors
from sparsecap_jax.runs import directory


def read_only():
    """Do what is no reading once (tracing models, loading published weights), or leave it out."""
    cached = functools.lru_cache(64)(models.abstract_params)
    directory.abstract_params = reference.abstract_params = cached
    extractors.load_params = functools.cache(efficientnet_lite.load_params)
    sparsity_report.SummaryWriter = mock.MagicMock()
    sparsity_report._draw = mock.MagicMock()
    attention_plot.Figure = attention_plot.save_figure = mock.MagicMock()
    os.fsync = lambda file: None

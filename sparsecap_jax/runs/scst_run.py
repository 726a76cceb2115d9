"""Self-critical training within a run: document frequencies, rewards, and the compiled step."""

import logging
from collections.abc import Callable

import jax
from jax.sharding import NamedSharding, PartitionSpec

from sparsecap_jax.captioning.search_options import decode_options
from sparsecap_jax.runs.run import Run
from sparsecap_jax.scst.config import parse
from sparsecap_jax.scst.document_frequency import DocumentFrequency, count_documents
from sparsecap_jax.scst.guard import check_document_frequency
from sparsecap_jax.scst.rewards import make_rewards
from sparsecap_jax.training.scst_step import make_scst_step
from sparsecap_jax.types import Batch, PyTree


class ScstRun:
    """What the loop needs to reward captions.

    Args:
        run: the run.
        report: takes lines of progress; a warning about document frequencies goes there, too.

    Attributes:
        step: see `make_scst_step`.

    Raises:
        ConfigError: document frequencies of word numbers.
        DataError: they cannot be read.
    """

    def __init__(self, run: Run, report: Callable[[str], None]):
        config = parse(run.config.scst)
        captions = [record.captions for record in run.dataset.splits["train"]]
        if config.document_frequency:
            frequency = DocumentFrequency.load(config.document_frequency)
            warning = check_document_frequency(frequency, captions, config.document_frequency)
            if warning:
                logging.getLogger(__name__).warning("%s", warning)
                report(f"*** {warning}")
        else:
            frequency = count_documents(captions, dataset="training split")
        self._rewards = make_rewards(config.weights, frequency, captions, run.tokenizer)
        self._sharding = NamedSharding(run.mesh, PartitionSpec(None, "data"))
        options = decode_options(run.tokenizer, run.config.max_seq_length, method="greedy")
        self.step = make_scst_step(
            run.model, run.pruner, run.tx, run.mesh, self._rewards, config, options
        )

    def references(self, batches: Batch) -> PyTree:
        """What the step needs to know of the images of batches, on the devices."""
        return jax.device_put(self._rewards.gather(batches.index), self._sharding)

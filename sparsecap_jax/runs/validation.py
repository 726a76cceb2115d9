"""Validation: loss, captions by greedy or beam search, their scores, and the sparsity reached."""

import itertools
from typing import Any

import jax
import numpy as np

from sparsecap_jax.captioning.batches import caption_batches
from sparsecap_jax.captioning.engines import Compiled
from sparsecap_jax.captioning.image_options import decode_options
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.data.karpathy import ImageId
from sparsecap_jax.data.pipeline import make_eval_batches
from sparsecap_jax.evaluation.metrics import score_captions
from sparsecap_jax.pruning.masks import finalize, overall_sparsity
from sparsecap_jax.pruning.step import TrainState
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.live_summary import sample_records
from sparsecap_jax.runs.run import Run
from sparsecap_jax.training.steps import make_validation_loss

# METEOR starts a Java process and takes seconds: the final evaluation has it, validation not.
METRICS = ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr")


class Validator:
    """Scores states on the validation split; compiled functions and batches are kept.

    Attributes:
        samples: captions of a few images, of the last state.
    """

    samples: dict[ImageId, str]

    def __init__(self, run: Run):
        self._run, config = run, run.config
        self._records = run.dataset.splits["val"][: config.eval.images or None]
        self._batches = make_eval_batches(
            self._records,
            run.dataset.store,
            batch_size=config.data.eval_batch_size,
            region_buckets=config.data.region_buckets,
            tokenizer=run.tokenizer,
            seq_per_img=config.data.seq_per_img,
            max_seq_length=config.max_seq_length,
        )
        self._loss = make_validation_loss(run.model, run.pruner)
        search = SearchOptions(
            beam_size=config.eval.beam_size_val, length_penalty=config.eval.length_penalty
        )
        self._options = decode_options(search, run.tokenizer, config.max_seq_length)
        self._finalize = jax.jit(lambda p, m: finalize(p, run.pruner.binarize(m)))

    def __call__(self, state: TrainState) -> tuple[dict[str, float], float | None]:
        """Return loss, scores from 0 to 1 and sparsity; and CIDEr, None where off the target."""
        run, (params, masks) = self._run, jax.device_get((state.params, state.prune.masks))
        dealt = range(processes.index(), len(self._batches), processes.count())
        losses = []
        for batch in self._batches.read(dealt):
            losses.append([float(part) for part in self._loss(params, masks, batch)])
        pruned = self._finalize(params, masks)
        captioned = caption_batches(
            Compiled(run.model, pruned), self._batches.read(dealt), run.tokenizer, self._options
        )
        texts = [(index, best[0].text) for index, best in captioned]
        gathered: list[Any] = processes.gather([losses, texts])
        # Added in the order of the batches, as by one process.
        rounds = itertools.zip_longest(*(part[0] for part in gathered))
        sums = np.zeros(2)
        for row in (row for rows in rounds for row in rows if row is not None):
            sums += row
        captions = {self._records[i].image_id: text for part in gathered for i, text in part[1]}
        self.samples = {r.image_id: captions[r.image_id] for r in sample_records(self._records)}
        references = {record.image_id: record.raw for record in self._records}
        tokenizer = run.config.eval.tokenizer
        scores = processes.on_first(
            lambda: score_captions(captions, references, METRICS, tokenizer)
        )
        metrics = {"loss": sums[0] / sums[1], **scores}
        reached = True
        if jax.tree.leaves(masks):
            binary = run.pruner.binarize(masks)
            metrics["sparsity"] = float(overall_sparsity(binary))
            reached = run.pruner.reached(binary, run.config.eval.sparsity_tolerance)
        return metrics, metrics["CIDEr"] if reached else None

"""Runs of a sweep over variants of self-critical training; the toy scenes and Flickr8k share it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from ml_collections import ConfigDict

from sparsecap_jax.experiments.sweeps import SweepRun

START = "cross-entropy"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One variant of self-critical training.

    Attributes:
        sample: `config.scst.sample`.
        baseline: `config.scst.baseline`.
        samples: captions of an image.
        learning_rate: of Adam, constant.
        images: of a step.
        steps: of a run, for each model.
    """

    sample: str
    baseline: str
    samples: int
    learning_rate: float
    images: int
    steps: Mapping[str, int]

    def apply(self, config: ConfigDict, model: str, validations: int) -> None:
        """Set the fields of a config, for a model and so many validations."""
        config.scst.update(sample=self.sample, baseline=self.baseline, num_samples=self.samples)
        config.optimizer.learning_rate = self.learning_rate
        config.data.batch_size = self.images
        steps = self.steps[model]
        config.train.update(steps=steps, eval_every=steps // validations)


def scst_runs(
    seeds: int,
    models: Iterable[str],
    variants: Mapping[str, Variant],
    make: Callable[[str, str, int], ConfigDict],
    *,
    twins: bool = False,
) -> list[SweepRun]:
    """Return, seed by seed and model by model, a cross-entropy start, then all variants from it.

    Args:
        seeds: seeds 0..seeds-1.
        models: names of the models.
        variants: variants by the name to show them under.
        make: `make(model, variant, seed)` returns the config of a run; `variant` is the name of
            one, or `START`.
        twins: whether captions of a run are compared with those of its start.
    """
    runs = []
    for seed in range(seeds):
        for model in models:
            start = f"{model}/start/seed_{seed}"
            labels = {"model": model, "variant": START, "seed": seed}
            runs.append(SweepRun(start, labels, make(model, START, seed)))
            for name, variant in variants.items():
                folder = f"{model}/{variant.sample}_{variant.baseline}/seed_{seed}"
                config, twin = make(model, name, seed), start if twins else ""
                runs.append(SweepRun(folder, {**labels, "variant": name}, config, start, twin))
    return runs

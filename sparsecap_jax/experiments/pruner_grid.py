"""Runs of a sweep over pruning methods and sparsities; the toy scenes and Flickr8k share it."""

from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from sparsecap_jax.experiments.sweeps import SweepRun
from sparsecap_jax.pruning import make_pruner

DENSE = "dense"
MakeConfig = Callable[[str, str, float, int], ConfigDict]


def pruner_runs(
    seeds: int,
    grid: Mapping[str, Sequence[float]],
    methods: Sequence[str],
    make: MakeConfig,
    *,
    start: str = DENSE,
    twins: bool = False,
) -> list[SweepRun]:
    """Return, seed by seed and model by model, the dense run, then all methods at each sparsity.

    Args:
        seeds: seeds 0..seeds-1.
        grid: sparsities of each model, in the order of the runs.
        methods: names of pruners, likewise.
        make: `make(model, method, sparsity, seed)` returns the config of a run, with its length in
            `config.train.steps`; the method of a run without a pruner is "dense" or `start`.
        start: name of the dense run that methods start from which prune a trained model; one that
            is not "dense" follows the dense run.
        twins: whether captions of a run are compared with those of the dense run of its seed.
    """
    runs = []
    for seed in range(seeds):
        for model, sparsities in grid.items():
            settings = [(DENSE, 0.0), *([(start, 0.0)] if start != DENSE else [])]
            settings += [(method, target) for target in sparsities for method in methods]
            dense, first = (f"{model}/{name}/seed_{seed}" for name in (DENSE, start))
            before = make(model, start, 0.0, seed).train.steps
            for method, target in settings:
                config = make(model, method, target, seed)
                steps = config.train.steps
                begun = bool(target) and make_pruner(config.pruner, steps).expects_trained
                labels = {"model": model, "method": method, "target": target, "seed": seed}
                labels["steps"] = steps + before * begun  # in all
                place = f"{method}/{target}" if target else method
                name = f"{model}/{place}/seed_{seed}"
                twin = dense if twins and name != dense else ""
                runs.append(SweepRun(name, labels, config, first if begun else "", twin))
    return runs

"""The tables of both papers on COCO, a sweep for each (docs/papers.md).

    sparsecap sweep --sweep=coco_up_down --data_dir=data/coco --workdir=runs/coco_up_down

Runs are the recipes of `configs/` with the flags of the authors' commands: `commands_pruning.sh`
and `commands_acort.sh` of github jiahuei/sparse-image-captioning, and `commands.sh` of
jiahuei/tf-sparse-captioning for Soft-Attention. Where the recipes leave a flag to its default, a
run changes that field. Sweeps of self-critical training hold the runs that they start from, under
the names that these have in the other sweep of the model: both may share a folder.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from sparsecap_jax.commands.console import folder
from sparsecap_jax.experiments.paper_tables import draw_table
from sparsecap_jax.experiments.sweeps import Sweep, SweepRun, score_all_metrics
from sparsecap_jax.runs.overrides import read_config

TARGETS = (0.95, 0.975, 0.9875)
DENSE = "dense"
GRADUAL = "mag_grad_uniform"
HARD = ("mag_blind", "mag_dist", "mag_uniform")
# Methods that start from another run, and from which.
STARTS = {
    **dict.fromkeys((*HARD, *(f"lottery_{name}" for name in HARD)), DENSE),
    "lottery_mask_freeze": GRADUAL,
}
SAVES = ("train.eval_every=6000",)  # the reference's --save_checkpoint_every


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of a table; every seed of it is a run.

    Attributes:
        name: folder of its runs.
        labels: first columns of the table.
        source: config, as `FILE.py:WORDS`.
        changes: fields that differ from it, as `SECTION.FIELD=VALUE`.
        start: name of the setting to start from.
    """

    name: str
    labels: Mapping[str, Any]
    source: str
    changes: tuple[str, ...]
    start: str = ""


@dataclasses.dataclass(frozen=True)
class Reward:
    """Self-critical training of a dense or a pruned model.

    Attributes:
        target: sparsity, 0 for the dense model.
        weight: of the sparsity loss of the supermask to start from.
        samples: captions of an image.
    """

    target: float = 0.0
    weight: float = 0.0
    samples: int = 15

    @property
    def mask(self) -> tuple[float, float]:
        """Sparsity and weight of the supermask."""
        return self.target, self.weight


@dataclasses.dataclass(frozen=True)
class Model:
    """What the commands train of one model.

    Attributes:
        model, variant: as `published.csv` names it.
        file: recipe in `configs/`.
        place: folder of its runs.
        words: of the recipe's argument, for every run.
        changes: fields that differ from the recipe in every run.
        weights: those of the supermask's sparsity loss, by sparsity.
        methods: sparsities of the other methods.
        of_method: fields that differ from the recipe under one method.
        rewards: runs of self-critical training.
        of_dense_reward: fields that differ from the recipe under a dense model's.
    """

    model: str
    file: str
    variant: str = ""
    place: str = ""
    words: tuple[str, ...] = ()
    changes: tuple[str, ...] = SAVES
    weights: Mapping[float, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    methods: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    of_method: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    rewards: tuple[Reward, ...] = (Reward(),)
    of_dense_reward: tuple[str, ...] = ()

    def setting(self, name: str, *words: str, start: str = "", **labels: Any) -> Setting:
        """Return a setting; `words` follow those of the model in the recipe's argument."""
        shown: dict[str, Any] = {"model": self.model, "variant": self.variant, "method": DENSE}
        shown |= {"target": 0.0, "weight": "", "training": "xe", **labels}
        changes = (*self.changes, *self.of_method.get(shown["method"], ()))
        if shown["training"] == "scst" and shown["method"] == DENSE:
            changes += self.of_dense_reward
        source = f"{self.file}:{','.join([*self.words, *words])}"
        return Setting(self.place + name, shown, source, changes, start and self.place + start)

    def supermask(self, target: float, weight: float) -> Setting:
        """Return the setting of a supermask."""
        words = ("supermask", f"sparsity={target:g}", f"sparsity_weight={weight:g}")
        return self.setting(_supermask_name(target, weight), *words, **_supermask(target, weight))

    def pruned(self, method: str, target: float) -> Setting:
        """Return the setting of another method."""
        start = STARTS.get(method, "")
        start += f"/{target:g}" if start == GRADUAL else ""
        words, labels = (method, f"sparsity={target:g}"), {"method": method, "target": target}
        return self.setting(f"{method}/{target:g}", *words, start=start, **labels)

    def rewarded(self, reward: Reward) -> tuple[Setting, Setting]:
        """Return the setting to start from, and that of its self-critical training."""
        words, training = ["scst", f"num_samples={reward.samples}"], {"training": "scst"}
        if not reward.target:
            after = self.setting(f"{DENSE}_scst", *words, start=DENSE, **training)
            return self.setting(DENSE), after
        words += ["mask_freeze", f"sparsity={reward.target:g}"]
        start, labels = _supermask_name(*reward.mask), _supermask(*reward.mask)
        after = self.setting(f"{start}_scst", *words, start=start, **labels, **training)
        return self.supermask(*reward.mask), after


def _supermask_name(target: float, weight: float) -> str:
    return f"supermask/{target:g}/weight_{weight:g}"


def _supermask(target: float, weight: float) -> dict[str, Any]:
    """Return the labels of a supermask."""
    return {"method": "supermask", "target": target, "weight": weight}


def pruning(*models: Model) -> list[Setting]:
    """Return the dense setting of each model, its supermasks, then its other methods."""
    found = []
    for one in models:
        found.append(one.setting(DENSE))
        found += [one.supermask(*mask) for mask in _pairs(one.weights)]
        found += [one.pruned(*pair) for pair in _pairs(one.methods)]
    return found


def rewards(*models: Model) -> list[Setting]:
    """Return the settings of self-critical training, each after the one that it starts from."""
    pairs = (one.rewarded(reward) for one in models for reward in one.rewards)
    return [setting for pair in pairs for setting in pair]


def _pairs(table: Mapping[Any, tuple[float, ...]]) -> list[tuple[Any, float]]:
    return [(key, value) for key, values in table.items() for value in values]


# Commands have 40, 80 and 120 at 95, 97.5 and 98.75%, and name 120 at 99.1%. At 80% they have
# nothing: the weight is the default of the reference, max(5, 0.5 or 1.5 / (1 - sparsity)).
_WEIGHTS = {**dict.fromkeys(TARGETS, (40.0, 80.0, 120.0)), 0.991: (120.0,)}
_FROM_DENSE = dict.fromkeys((*HARD, *(f"lottery_{name}" for name in HARD)), TARGETS)
_SIGNED = {"snip": ("pruner.reference_signed=True",)}  # as published; see docs/differences.md

UP_DOWN = Model(
    "up_down",
    "up_down.py",
    weights={0.8: (5.0,), **_WEIGHTS},
    methods={GRADUAL: TARGETS, "snip": TARGETS, **_FROM_DENSE, "lottery_mask_freeze": TARGETS},
    of_method=_SIGNED,
    rewards=(Reward(), Reward(0.95, 80.0, 60), Reward(0.991, 120.0, 60)),
    of_dense_reward=("model.dropout=0.1",),
)
ORT = Model(
    "relation_transformer",
    "ort.py",
    weights={0.8: (7.5,), **_WEIGHTS},
    methods={
        GRADUAL: (*TARGETS, 0.991),
        "snip": TARGETS,
        **_FROM_DENSE,
        "lottery_mask_freeze": (*TARGETS, 0.991),
    },
    of_method=_SIGNED,
    rewards=(Reward(), Reward(0.95, 120.0), Reward(0.9875, 80.0), Reward(0.991, 120.0)),
    of_dense_reward=("model.source_dropout=0.1",),
)
# 30 epochs of all captions in steps of 32: 10 of them where a trained model is pruned.
_SOFT_ATTENTION = Model(
    "soft_attention",
    "soft_attention.py",
    changes=(
        *("data.batch_size=32", "data.seq_per_img=1", "train.steps=531325"),
        *("train.eval_every=17710", "optimizer.clip=none", "optimizer.weight_decay=1e-5"),
        "eval.beam_size_test=3",
    ),
    weights={0.8: (5.0,), 0.9: (5.0,), 0.95: (10.0,), 0.975: (20.0,)},
    methods=dict.fromkeys((GRADUAL, "snip", *HARD, "lottery_mag_blind"), (0.8, 0.9, 0.95, 0.975)),
    of_method={
        **dict.fromkeys(HARD, ("train.steps=177108",)),
        GRADUAL: ("pruner.start_step=17710",),
    },
)
SOFT_ATTENTION_LSTM = dataclasses.replace(_SOFT_ATTENTION, variant="LSTM")
SOFT_ATTENTION_GRU = dataclasses.replace(_SOFT_ATTENTION, variant="GRU", words=("gru",))
# Scores of the published ACORT are those of five beams.
_acort = functools.partial(
    Model,
    changes=(*SAVES, "eval.beam_size_test=5"),
    of_dense_reward=("model.source_dropout=0.1",),
)
ACORT = (
    _acort("ACORT-base", "acort.py", place="acort_base/"),
    _acort("ACORT-base-AL", "acort.py", place="acort_base_al/", words=("base_al",)),
    _acort("ACORT-small", "acort.py", place="acort_small/", words=("small",)),
    _acort("ACORT-xsmall", "acort.py", place="acort_xsmall/", words=("xsmall",)),
    _acort("relation_transformer", "ort.py", place="ort/"),
    _acort("ORT-small", "ort.py", place="ort_small/", words=("small",)),
    _acort("ORT-xsmall", "ort.py", place="ort_xsmall/", words=("xsmall",)),
)


def paper_runs(settings: list[Setting], seeds: int) -> list[SweepRun]:
    """Return the runs of settings, seed by seed."""
    configs = [read_config(f"{folder('configs')}/{one.source}", one.changes) for one in settings]
    runs = []
    for seed in range(seeds):
        for one, config in zip(settings, configs, strict=True):
            config = config.copy_and_resolve_references()
            config.seed = seed
            start = f"{one.start}/seed_{seed}" if one.start else ""
            labels = {**one.labels, "seed": seed}
            runs.append(SweepRun(f"{one.name}/seed_{seed}", labels, config, start))
    return runs


def _sweep(settings: list[Setting]) -> Sweep:
    return Sweep(
        lambda seeds: paper_runs(settings, seeds),
        lambda workdir, rows: draw_table(workdir, [one.labels for one in settings], rows),
        score_all_metrics,
        seeds=1,
    )


SETTINGS = {
    "coco_up_down": pruning(UP_DOWN),
    "coco_up_down_scst": rewards(UP_DOWN),
    "coco_ort": pruning(ORT),
    "coco_ort_scst": rewards(ORT),
    "coco_soft_attention_lstm": pruning(SOFT_ATTENTION_LSTM),
    "coco_soft_attention_gru": pruning(SOFT_ATTENTION_GRU),
    "coco_acort": pruning(*ACORT),
    "coco_acort_scst": rewards(*ACORT),
}
SWEEPS = {name: _sweep(settings) for name, settings in SETTINGS.items()}

"""Sweeps of the papers' tables: flags of the authors' commands, published figures, a dry run.

Flags were copied by hand from `commands_pruning.sh`, `commands_acort.sh` and, for Soft-Attention,
`train_caption.py` of the TensorFlow code. Those of paths, logs and caches are left out.
"""

import dataclasses
import pathlib
import re

import pytest
from tiny_runs import make_data, tiny_config

from sparsecap_jax.evaluation.published import published_results
from sparsecap_jax.experiments.paper_tables import paper_table, published_row
from sparsecap_jax.experiments.papers import SETTINGS, SWEEPS
from sparsecap_jax.experiments.sweep_runner import run_sweep
from sparsecap_jax.experiments.sweeps import score_test_split
from sparsecap_jax.files import read_csv, read_json
from sparsecap_jax.runs.config import make_section

TARGETS = (0.9875, 0.975, 0.95)
DEFAULTS = {
    "max_seq_length": 18,
    "data.batch_size": 15,
    "data.seq_per_img": 5,
    "tokenizer.name": "word",
    "tokenizer.vocab_size": 10000,  # 10001 there, with PAD
    "train.epochs": 15,
    "train.steps": 0,
    "train.label_smoothing": 0.0,
    "train.eval_every": 6000,
    "optimizer.name": "adam",
    "optimizer.weight_decay": 0.0,
    "optimizer.clip": "value",
    "optimizer.clip_at": 0.1,
    "scst.start_epoch": -1,
    "eval.beam_size_test": 2,
    "eval.beam_size_val": 1,
}
COSINE = {
    "optimizer.schedule": "cosine",
    "optimizer.learning_rate": 0.01,
    "optimizer.learning_rate_min": 1e-5,
    "optimizer.epsilon": 0.01,
}
NOAM = {
    "optimizer.schedule": "noam",
    "optimizer.noam_factor": 1.0,
    "optimizer.noam_warmup": 10000,
    "optimizer.beta": 0.98,
    "optimizer.epsilon": 1e-9,
}
SCST = {
    "optimizer.schedule": "constant",  # step, --learning_rate_decay_start -1
    "optimizer.learning_rate": 5e-5,
    "optimizer.beta": 0.999,
    "optimizer.epsilon": 1e-8,
    "data.batch_size": 5,
    "data.seq_per_img": 1,
    "train.epochs": 10,
    "scst.start_epoch": 0,
    "scst.sample": "random",
    "scst.baseline": "sample",
    "scst.num_samples": 15,
    "scst.cider_d": 1.0,
    "scst.bleu_1": 0.0,
    "scst.bleu_4": 1.0,
}
SIZES = {
    "up_down": {
        **{"model.name": "up_down", "model.rnn_size": 1000, "model.embed_size": 1000},
        **{"model.attention_size": 512, "model.logit_layers": 1, "data.feature_size": 2048},
    },
    "ort": {
        **{"model.name": "relation_transformer", "model.d_model": 512, "model.ff_size": 2048},
        **{"model.num_layers": 6, "model.num_heads": 8, "model.box_embedding": "trig"},
        **{"model.share_attention_encoder": "", "model.share_layer_encoder": ()},
        **{"model.share_attention_decoder": "", "model.share_layer_decoder": ()},
    },
}
DENSE = {
    "up_down": {**DEFAULTS, **COSINE, **SIZES["up_down"], "model.dropout": 0.5},
    "ort": {
        **{**DEFAULTS, **NOAM, **SIZES["ort"]},
        **{"model.source_dropout": 0.5, "model.dropout": 0.1},
    },
}
PRUNED = {
    "up_down": {**DENSE["up_down"], "model.dropout": 0.1},
    "ort": {**DENSE["ort"], "model.source_dropout": 0.1, "model.dropout": 0.1 / 3},
}
SUPERMASK = {"pruner.init_value": 5.0, "optimizer.mask_learning_rate": 100.0}
SUPERMASK |= {"pruner.bypass_sigmoid_grad": False, "optimizer.mask_epsilon": 0.01}


def pruner(name, target, **fields):
    more = {f"pruner.{key}": value for key, value in fields.items()}
    return {"pruner.name": name, "pruner.sparsity": target, **more}


def pruning_commands(model):
    """Name, flags and start of each command of a model in commands_pruning.sh, loops unrolled."""
    dense, pruned = DENSE[model], PRUNED[model]
    yield "dense", {**dense, "pruner.name": "none"}, ""
    for target in TARGETS:
        for weight in (40, 80, 120):
            flags = {**pruned, **SUPERMASK, **pruner("supermask", target, sparsity_weight=weight)}
            yield f"supermask/{target}/weight_{weight}", flags, ""
        flags = {**pruned, **pruner("mag_grad_uniform", target)}
        yield f"mag_grad_uniform/{target}", flags, ""
        snip = pruner("snip", target, num_batches=1, reference_signed=True)
        yield f"snip/{target}", {**pruned, **snip}, ""
        for name in ("mag_blind", "mag_uniform", "mag_dist"):
            flags = {**pruned, **pruner(name, target), "train.epochs": 10}
            yield f"{name}/{target}", flags, "dense"
        flags = {**pruned, **pruner("lottery_mag_uniform", target)}
        yield f"lottery_mag_uniform/{target}", flags, "dense"
        flags = {**pruned, **pruner("lottery_mask_freeze", target)}
        yield f"lottery_mask_freeze/{target}", flags, f"mag_grad_uniform/{target}"


def scst_commands(model):
    """Name, flags and start of the self-critical commands of a model there."""
    dropout = "model.dropout" if model == "up_down" else "model.source_dropout"
    flags = {**DENSE[model], **SCST, dropout: 0.1, "pruner.name": "none"}
    yield "dense_scst", flags, "dense"
    target, weight, samples = {"up_down": (0.991, 120, 60), "ort": (0.9875, 80, 15)}[model]
    frozen = {**PRUNED[model], **SCST, **pruner("mask_freeze", target)}
    start = f"supermask/{target}/weight_{weight}"
    yield f"{start}_scst", {**frozen, "scst.num_samples": samples}, start


ACORT_SHARED = {
    **{"tokenizer.name": "radix", "tokenizer.radix_base": 768, "max_seq_length": 26},
    **{f"model.share_attention_{side}": "kv" for side in ("encoder", "decoder")},
}


def shared_layers(*order):
    return {f"model.share_layer_{side}": order for side in ("encoder", "decoder")}


def acort_commands(training):
    """Name, flags and start of the commands of commands_acort.sh."""
    acort = {**DENSE["ort"], **ACORT_SHARED, **shared_layers(0, 0, 0, 1, 1, 1)}
    small, xsmall = ({"model.d_model": d, "model.ff_size": 4 * d} for d in (256, 104))
    models = {
        "acort_base": acort,
        "acort_base_al": {**acort, **shared_layers(0, 0, 0, 0, 0, 0)},
        "acort_small": {**acort, **small},
        "ort": DENSE["ort"],
        "ort_small": {**DENSE["ort"], **small},
        "ort_xsmall": {**DENSE["ort"], **xsmall},
    }
    for name, flags in models.items():
        flags = {**flags, "pruner.name": "none", "eval.beam_size_test": 5}  # as published
        if training == "xe":
            yield f"{name}/dense", flags, ""
        else:
            flags = {**flags, **SCST, "model.source_dropout": 0.1}
            yield f"{name}/dense_scst", flags, f"{name}/dense"


def soft_attention_commands(cell):
    """Name, flags and start of the commands of the TensorFlow code."""
    dense = {
        **{**COSINE, "model.name": "soft_attention", "model.cell": cell, "model.rnn_size": 512},
        **{"model.embed_size": 256, "model.attention_size": 512},
        **{"data.batch_size": 32, "data.seq_per_img": 1, "train.steps": 531325},  # --max_epoch 30
        **{"optimizer.clip": "none", "optimizer.weight_decay": 1e-5, "eval.beam_size_test": 3},
        **{"model.dropout": 0.35, "model.attention_dropout": 0.1},  # keep_prob 0.65 and 0.9
    }
    yield "dense", {**dense, "pruner.name": "none"}, ""
    pruned = {**dense, "model.dropout": 0.11, "model.attention_dropout": 0.03}
    for target, weight in ((0.8, 5), (0.9, 5), (0.95, 10), (0.975, 20)):
        mask = pruner("supermask", target, sparsity_weight=weight)
        yield f"supermask/{target}/weight_{weight}", {**pruned, **SUPERMASK, **mask}, ""
        gradual = pruner("mag_grad_uniform", target, start_step=17710, frequency=None)
        yield f"mag_grad_uniform/{target}", {**pruned, **gradual}, ""
        snip = pruner("snip", target, reference_signed=False)  # tf.abs(saliency)
        yield f"snip/{target}", {**pruned, **snip}, ""
        for name in ("mag_blind", "mag_uniform", "mag_dist"):
            hard = {**pruned, **pruner(name, target), "train.steps": 177108}  # --max_epoch 10
            yield f"{name}/{target}", hard, "dense"
        lottery = {**pruned, **pruner("lottery_mag_blind", target)}
        yield f"lottery_mag_blind/{target}", lottery, "dense"


COMMANDS = {
    "coco_up_down": lambda: pruning_commands("up_down"),
    "coco_up_down_scst": lambda: scst_commands("up_down"),
    "coco_ort": lambda: pruning_commands("ort"),
    "coco_ort_scst": lambda: scst_commands("ort"),
    "coco_soft_attention_lstm": lambda: soft_attention_commands("lstm"),
    "coco_soft_attention_gru": lambda: soft_attention_commands("gru"),
    "coco_acort": lambda: acort_commands("xe"),
    "coco_acort_scst": lambda: acort_commands("scst"),
}
LOTTERIES = {f"lottery_{name}/{target}" for name in ("mag_blind", "mag_dist") for target in TARGETS}
XSMALL = "acort_xsmall/dense"
# Runs without a command: they are in the papers' tables, in the issue of them, or start others.
MORE = {
    "coco_up_down": {"supermask/0.8/weight_5", "supermask/0.991/weight_120", *LOTTERIES},
    "coco_up_down_scst": {
        *("dense", "supermask/0.95/weight_80", "supermask/0.991/weight_120"),
        "supermask/0.95/weight_80_scst",
    },
    "coco_ort": {
        *("supermask/0.8/weight_7.5", "supermask/0.991/weight_120", *LOTTERIES),
        *("mag_grad_uniform/0.991", "lottery_mask_freeze/0.991"),
    },
    "coco_ort_scst": {
        *("dense", "supermask/0.95/weight_120", "supermask/0.95/weight_120_scst"),
        *("supermask/0.9875/weight_80", "supermask/0.991/weight_120"),
        "supermask/0.991/weight_120_scst",
    },
    "coco_acort": {XSMALL},
    "coco_acort_scst": {XSMALL, f"{XSMALL}_scst", *(name for name, *_ in acort_commands("xe"))},
}


def value(config, path):
    section, _, key = path.rpartition(".")
    return (config[section] if section else config)[key]


@pytest.fixture(scope="module")
def runs():
    """All runs of a seed by sweep and name, made once."""
    made = {}

    def of(sweep):
        if sweep not in made:
            found = SWEEPS[sweep].runs(1)
            made[sweep] = {run.name.removesuffix("/seed_0"): run for run in found}
            assert len(made[sweep]) == len(found)
        return made[sweep]

    return of


@pytest.mark.parametrize("sweep", COMMANDS)
def test_every_command_is_a_run_with_its_flags(sweep, runs):
    named = runs(sweep)
    commands = {name: (flags, start) for name, flags, start in COMMANDS[sweep]()}
    assert {*named} - {*commands} == MORE.get(sweep, set())
    for name, (flags, start) in commands.items():
        run = named[name]
        for path, flag in flags.items():
            flag = pytest.approx(flag) if isinstance(flag, float) else flag
            assert value(run.config, path) == flag, (name, path)
        assert run.init_from == (f"{start}/seed_0" if start else "")


def test_runs_of_two_sweeps_of_a_model_are_the_same(runs):
    for name in ("up_down", "ort", "acort"):
        first, second = runs(f"coco_{name}"), runs(f"coco_{name}_scst")
        both = first.keys() & second.keys()
        assert len(both) == {"up_down": 3, "ort": 4, "acort": 7}[name]
        for one in both:
            assert first[one].config == second[one].config
            assert first[one].labels == second[one].labels


def test_seeds_follow_one_another():
    found = SWEEPS["coco_up_down_scst"].runs(2)
    assert [run.config.seed for run in found] == [0] * 6 + [1] * 6
    assert found[7].init_from == "dense/seed_1"


def test_every_published_result_is_next_to_a_run():
    rows = [published_row(one.labels) for settings in SETTINGS.values() for one in settings]
    assert all(row in rows for row in published_results())
    assert len(published_results()) == 114


@pytest.mark.parametrize(
    ("sweep", "name", "cider", "bleu"),
    [
        ("coco_up_down", "dense", 111.3, 35.7),
        ("coco_up_down", "supermask/0.9875/weight_40", 109.0, 35.0),
        ("coco_up_down", "lottery_mask_freeze/0.95", 109.5, 34.7),
        ("coco_up_down", "snip/0.975", 34.7, 15.8),
        ("coco_ort", "mag_dist/0.9875", 96.9, 31.5),
        ("coco_ort_scst", "supermask/0.991/weight_120_scst", 124.3, None),
        ("coco_soft_attention_lstm", "lottery_mag_blind/0.975", 74.7, 25.0),
        ("coco_soft_attention_gru", "mag_uniform/0.8", 92.8, 30.1),
        ("coco_acort_scst", "acort_small/dense_scst", 126.9, None),
        ("coco_acort_scst", "ort/dense_scst", 130.3, None),
    ],
)
def test_published_figures_by_hand(sweep, name, cider, bleu):
    (setting,) = [one for one in SETTINGS[sweep] if one.name == name]
    row = published_row(setting.labels)
    assert (row["CIDEr"], row["Bleu_4"]) == (cider, bleu)


def test_what_was_not_published_has_no_figure():
    unknown = {"supermask/0.8/weight_5", "lottery_mag_dist/0.95", "mag_blind/0.95"}
    found = {one.name for one in SETTINGS["coco_up_down"] if not published_row(one.labels)}
    assert unknown <= found


def test_table_by_hand():
    settings = [
        one.labels for one in SETTINGS["coco_up_down"] if one.name in ("dense", "snip/0.95")
    ]
    row = {**settings[0], "CIDEr": 1.0, "Bleu_4": 0.3, "METEOR": None, "nonzeros": 53_120_000}
    rows = [{**row, "seed": 0}, {**row, "seed": 1, "CIDEr": 1.1}]
    assert paper_table(settings, rows).splitlines() == [
        "| model | method | sparsity | weight | training | seeds | CIDEr, published | CIDEr "
        "| BLEU-4, published | BLEU-4 | METEOR | nonzeros (M), published | nonzeros (M) | source |",
        "|" + "---|" * 14,
        "| up_down | dense | 0 |  | xe | 2 | 111.3 | 105.0 ± 5.0 | 35.7 | 30.0 ± 0.0 |  |  "
        "| 53.1 ± 0.0 | 2110.03298 methods |",
        "| up_down | snip | 0.95 |  | xe |  | 38.2 |  | 16.9 |  |  | 2.7 |  | 2110.03298 methods |",
    ]


def test_the_page_has_every_sweep_and_its_patterns_find_runs():
    page = (pathlib.Path(__file__).parents[2] / "docs/papers.md").read_text("utf-8")
    counts = dict(re.findall(r"^\| `(coco_\w+)` \|.*?\| (\d+) \|", page, re.MULTILINE))
    assert counts == {name: str(len(settings)) for name, settings in SETTINGS.items()}
    patterns = re.findall(r"--sweep=(\w+) --only=([^`]+)`", page)
    assert len(patterns) == 17
    for sweep, pattern in patterns:
        only = re.compile(pattern.replace("\\|", "|"))
        assert any(only.search(f"{one.name}/seed_0") for one in SETTINGS[sweep]), pattern


TINY = {
    "up_down": {"embed_size": 12, "rnn_size": 16, "attention_size": 10},
    "soft_attention": {"embed_size": 12, "rnn_size": 16, "attention_size": 10},
    "relation_transformer": {
        **{"d_model": 16, "ff_size": 16, "num_layers": 2, "num_heads": 2},
        **{f"share_layer_{side}": (0, 0) for side in ("encoder", "decoder")},
    },
}


def shrunk(run, data):
    """A run with its pruner and objective, in two steps of a tiny model on toy scenes."""
    config = run.config.copy_and_resolve_references()
    name = config.model.name
    with config.unlocked():
        config.data = tiny_config(data).data
        fields = {key: field for key, field in config.model.items() if key != "name"}
        config.model = make_section("model", name, **{**fields, **TINY[name]})
    if config.scst.start_epoch == 0:
        config.data.seq_per_img = 1
        config.scst.num_samples = 2
    if config.pruner.name == "supermask":
        config.pruner.init_value = 0.01  # two steps prune some weights
    if config.pruner.name == "mask_freeze":
        config.pruner.sparsity = 0.0  # these, not 95% of them
    config.train.update(steps=2, eval_every=2, log_every=1, devices=1)
    config.eval.beam_size_test = 1
    config.tokenizer.vocab_size = 300
    return dataclasses.replace(run, config=config)


def test_dry_run(tmp_path):
    """One run of each kind: dense, supermask, gradual, lottery, rewards; each architecture."""
    data = make_data(tmp_path / "toy")
    chosen = {
        "coco_up_down": "^(supermask/0.95/weight_80|lottery_mask_freeze/0.95)/",
        "coco_up_down_scst": "^supermask/0.95/weight_80_scst/",
        "coco_acort": "^acort_base/",
        "coco_soft_attention_gru": "^dense/",
    }
    results = {}
    for name, only in chosen.items():
        sweep = SWEEPS[name]
        tiny = [shrunk(run, data) for run in sweep.runs(1)]
        # METEOR, which starts Java, is left out.
        fast = {"runs": lambda seeds, tiny=tiny: tiny, "evaluate": score_test_split}
        tiny = dataclasses.replace(sweep, **fast)
        folder = tmp_path / name.removesuffix("_scst")
        rows = run_sweep(tiny, folder, only=only, report=lambda _: None)
        results[name] = {(row["method"], row["training"]): row for row in rows}
    methods = {
        (method, "xe") for method in ("supermask", "mag_grad_uniform", "lottery_mask_freeze")
    }
    assert {*results["coco_up_down"]} == methods
    rewarded = results["coco_up_down_scst"][("supermask", "scst")]
    mask = tmp_path / "coco_up_down/supermask/0.95/weight_80"
    assert rewarded["nonzeros"] == results["coco_up_down_scst"][("supermask", "xe")]["nonzeros"]
    start = read_json(tmp_path / f"{mask}_scst/seed_0/config.json")["train"]["init_from"]
    assert start == f"{mask}/seed_0"
    for name in ("coco_acort", "coco_soft_attention_gru"):
        assert results[name][("dense", "xe")]["sparsity"] == 0.0
    # Both tables of Up-Down are of one folder; rows of the other sweep are kept.
    table = read_csv(tmp_path / "coco_up_down/results.csv")
    assert len(table) == 4 and all(float(row["CIDEr"]) >= 0 for row in table)
    lines = (tmp_path / "coco_up_down/table.md").read_text().splitlines()
    (line,) = [line for line in lines if "| supermask | 0.95 | 80 | scst |" in line]
    assert "| 1 | 124.9 |" in line

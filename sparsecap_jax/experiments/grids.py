"""Sweeps over fields of a config: products of values, or a file that lists settings.

    sparsecap sweep --config=configs/toy.py:supermask --set=pruner.sparsity=0.8,0.95 \
        --set=optimizer.learning_rate=1e-3,3e-3 --seeds=3 --workdir=runs/grid
    sparsecap sweep --grid=grid.py --workdir=runs/grid

`--grid` names a Python file that runs as config files do; its `get_grid()` returns a list of dicts:

    def get_grid():
        return [
            {"name": "dense", "config": "configs/toy.py"},
            {"init_from": "dense", "config": "configs/toy.py:mag_blind", "pruner.sparsity": 0.9},
        ]

Keys are fields of the config, and `config`, the file and its words (by default that of `--config`),
`name`, the folder of the runs, and `init_from`, the name of an entry further up to start from.
"""

import itertools
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparsecap_jax.commands.console import with_config
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.tables import markdown_table
from sparsecap_jax.experiments.sweep_tables import Row, mean_cell
from sparsecap_jax.experiments.sweeps import Sweep, SweepRun, score_all_metrics
from sparsecap_jax.files import absent, write_atomically
from sparsecap_jax.runs.overrides import call_file, read_config

Entry = Mapping[str, Any]
_OWN = ("name", "config", "init_from")
_MAX_RUNS = 10_000
# Commas outside brackets: 0.8,0.95 are two values, (16,36),(64,) as well.
_VALUES = re.compile(r"((?:\([^()]*\)|\[[^\[\]]*\]|[^,])+)(?:,|$)")
_SCORES = {"CIDEr": 100.0, "Bleu_4": 100.0, "METEOR": 100.0, "sparsity": 100.0}


def product(settings: Sequence[str]) -> list[Entry]:
    """Return all combinations of values, the last field varying fastest.

    Args:
        settings: `SECTION.FIELD=VALUE,VALUE,...`; commas within brackets belong to a value.

    Raises:
        ConfigError: a setting without a value, a field twice, or too many combinations.
    """
    fields: dict[str, list[str]] = {}
    for setting in settings:
        path, _, text = setting.partition("=")
        values = _VALUES.findall(text)
        if not values or path in fields:
            fault = "is there twice" if path in fields else "has no value"
            raise ConfigError(f"--set: {path!r} {fault}; expected SECTION.FIELD=VALUE,VALUE")
        fields[path] = values
    if math.prod(map(len, fields.values())) > _MAX_RUNS:
        raise ConfigError(f"--set: more than {_MAX_RUNS} combinations")
    combinations = itertools.product(*fields.values())
    return [dict(zip(fields, values, strict=True)) for values in combinations]


def load_grid(path: str | pathlib.Path) -> list[Entry]:
    """Return the entries of a grid file, see above.

    Raises:
        ConfigError: there is no such file, it fails, or its `get_grid` returns no list of dicts.
    """
    if not pathlib.Path(path).is_file():
        raise ConfigError(absent(path, "a Python file with get_grid()"))
    entries = call_file(path, lambda module: module.get_grid())
    if not isinstance(entries, list | tuple) or not all(isinstance(e, Mapping) for e in entries):
        raise ConfigError(f"{path}: get_grid() is no list of dicts")
    if not 0 < len(entries) <= _MAX_RUNS:
        raise ConfigError(f"{path}: {len(entries)} entries; expected 1 to {_MAX_RUNS}")
    return list(entries)


def grid_sweep(entries: Sequence[Entry], config: str = "") -> Sweep:
    """Return the sweep of a grid.

    Args:
        entries: dicts of fields, see above; values are Python's, or texts as on a command line.
        config: `FILE.py:WORDS` of entries that name none.

    Raises:
        ConfigError: an entry without a config, two of one name, a start that is not further up, or
            `seed` among the fields (from the sweep's `runs`: a config that is faulty).
    """
    fields = list(dict.fromkeys(key for entry in entries for key in entry if key not in _OWN))
    if "seed" in fields:
        raise ConfigError("a grid has no field 'seed'; expected --seeds=N")
    named: dict[str, Entry] = {}
    for entry in entries:
        name = str(entry.get("name") or _name(entry))
        if not re.fullmatch(r"[\w.=,+-][\w.=,+/-]{0,199}", name) or ".." in name or name in named:
            fault = "is there twice" if name in named else "is no folder"
            raise ConfigError(f"grid: name {name!r:.80} {fault}; expected another `name`")
        if not entry.get("config", config):
            raise ConfigError(f"grid: {name}: no config; expected --config=FILE.py")
        if entry.get("init_from") and entry["init_from"] not in named:
            raise ConfigError(
                f"grid: {name}: init_from {entry['init_from']!r:.80} is no name above"
            )
        named[name] = entry
    return Sweep(
        lambda seeds: _runs(named, fields, config, seeds),
        lambda workdir, rows: _draw(workdir, fields, rows),
        score_all_metrics,
        seeds=1,
    )


def _name(entry: Entry) -> str:
    """Return a folder's name that says what an entry changes."""
    parts = [str(entry["config"])] if "config" in entry else []
    parts += [f"{key}={value}" for key, value in entry.items() if key not in _OWN]
    return re.sub(r"[^\w.=,+-]+", "_", ",".join(parts))[:200] or "run"


def _runs(
    named: Mapping[str, Entry], fields: Sequence[str], config: str, seeds: int
) -> list[SweepRun]:
    configs = {}
    for name, entry in named.items():
        changes = [f"{key}={value}" for key, value in entry.items() if key not in _OWN]
        configs[name] = read_config(with_config(str(entry.get("config", config))), changes)
    runs = []
    for seed in range(seeds):
        for name, entry in named.items():
            seeded = configs[name].copy_and_resolve_references()
            seeded.seed = seed
            start = f"{entry['init_from']}/seed_{seed}" if entry.get("init_from") else ""
            labels = {"run": name, **{key: str(entry.get(key, "")) for key in fields}}
            runs.append(SweepRun(f"{name}/seed_{seed}", {**labels, "seed": seed}, seeded, start))
    return runs


def _draw(workdir: pathlib.Path, fields: Sequence[str], rows: Sequence[Row]) -> None:
    """Write `table.md`: means and standard deviations over seeds, scores times 100."""
    lines = []
    for name in dict.fromkeys(row["run"] for row in rows):
        seeds = [row for row in rows if row["run"] == name]
        cells = [name, *(seeds[0][key] for key in fields), str(len(seeds))]
        cells += [mean_cell(seeds, column, scale) for column, scale in _SCORES.items()]
        lines.append([*cells, mean_cell(seeds, "nonzeros", 1.0, 0)])
    with write_atomically(workdir / "table.md") as file:
        file.write(markdown_table(["run", *fields, "seeds", *_SCORES, "nonzeros"], lines))

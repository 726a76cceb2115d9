"""docs/config.md, generated from the sections: `python -m sparsecap_jax.runs.config_docs`."""

import pathlib
from collections.abc import Mapping

from sparsecap_jax.files import write_atomically
from sparsecap_jax.runs.config import CHOICES, SECTIONS, section_fields
from sparsecap_jax.settings import Field, expected

PATH = pathlib.Path(__file__).parents[2] / "docs" / "config.md"
INTRO = """\
# Config

`python -m sparsecap_jax.runs.config_docs` writes this page from the code: edit the docstrings, not
the page.

A config file is Python: its function `get_config(arg)` returns a config, and what follows the colon
in `--config=configs/up_down.py:tiny,supermask` is `arg`. Any field can be set by a flag:

    sparsecap train --config=configs/toy.py --config.train.steps=500 \\
        --print_config

`--print_config` prints every field and where its value comes from (default, config file or flag),
and does nothing else. A config is checked as a whole before anything is written.

- **Lists** are written `--config.data.region_buckets=20,36`, or by repeating the flag. `None` is
  written as it is, and `--config.model.remat` alone means true.
- **Names.** `--config.pruner.name=supermask` gives the section the defaults of that pruner: those
  of the recipe where it has some (`sparsity` 0.95), and leaves the other sections alone; the word
  `supermask` in the config's argument chooses the whole recipe. `--config.model.name`,
  `--config.tokenizer.name` and `--config.objective.name` likewise give the defaults of their
  choice. Other flags are applied afterwards, whatever their order.
- **Names of yours.** `--config.model.name=my_module:MyModel` imports `my_module` and trains that
  class. Commands that read the finished run need `--plugin=my_module`: names in files never import
  anything.

## Continuing a run

The same command continues a run. Fields marked "yes" below may have other values then; the new
config takes the place of config.json, and one line reports the changes. Any other change is an
error that names the field.

With another length (`train.steps`, `train.epochs`) the run continues with the schedules of the new
length, evaluated from its current step on. A cosine learning rate therefore rises again where a
finished run is lengthened, the annealed weight of the supermask's sparsity loss falls, and gradual
pruning follows its new schedule, which may bring weights back. A length below the steps that are
done already is an error.

The best checkpoint is the one with the highest validation CIDEr. Where `eval` changes on the way,
scores before and after the change are compared as they are.

## Stopping a run

SIGTERM and SIGINT (Ctrl-C) let the step under way end, save a checkpoint, and end the command with
one line that names the step. The same command (after `--from_step=N`, without that flag) continues,
with the same bits as a run that was never stopped. Before the first step, nothing is saved, and the
command starts anew. A second signal ends the process at once; as after a kill, the run then
continues from its last checkpoint. `sparsecap caption`, `evaluate` and `prepare_data` (`extract`,
`convert`) stop before the next image; the same command continues, except for photos without
`--output`. Other commands stop at once.

| exit status | |
|---|---|
| 0 | done |
| 1 | an error, in one line |
| 130, 143 | stopped by SIGINT, by SIGTERM: 128 and the signal's number, as shells count |

Compiling or a validation under way ends first, so give a run a minute or two between SIGTERM and
SIGKILL: `--signal=TERM@120` of Slurm's `srun` (its own interval is 30 s),
`terminationGracePeriodSeconds` of Kubernetes, `TimeoutStopSec` of systemd. In a program of your
own, `with sparsecap_jax.stopping.on_signals():` around `train` does the same; what it raises is a
`SystemExit` of that status.

One process at a time writes to a run directory, or to the output of `sparsecap caption`,
`evaluate`, `sweep`, `prepare_data extract` and `prepare_data convert`; a second one ends with an
error that names the first. The lock (`flock` of `.lock`) ends with its process, however that ends.
Over NFS it holds between machines as far as the server and the mount have locks (not with `nolock`
or `local_lock`); where a file system has none, nothing is checked.

A full disk, missing rights or a path that cannot exist are an error of one line that names path and
reason. Earlier checkpoints stay as they are, and what was half written is removed.
"""


def render() -> str:
    """Return the page."""
    parts = [INTRO, "## Outside the sections\n", _table(section_fields(""))]
    for section in SECTIONS:
        parts.append(f"## `config.{section}`\n")
        parts += _choices(section) if section in CHOICES else [_table(section_fields(section))]
    return "\n".join(parts)


def _choices(section: str) -> list[str]:
    """Tables of the fields that all choices have, and of what each has besides."""
    fields = {name: section_fields(section, name) for name in sorted(CHOICES[section])}
    shared = {}
    for key in next(iter(fields.values())):
        variants = [known[key] for known in fields.values() if key in known]
        if len(variants) == len(fields):
            shared[key] = max(variants, key=variants.count)
    alike: dict[str, list[str]] = {}
    for name, known in fields.items():
        rest = {key: field for key, field in known.items() if shared.get(key) != field}
        alike.setdefault(_table(rest) if rest else "No further fields.\n", []).append(name)
    parts = [f"`name` chooses one of {', '.join(f'`{name}`' for name in fields)}.\n"]
    parts += ["All have these fields, some with another default below:\n", _table(shared)]
    for table, names in alike.items():
        parts += [f"### {', '.join(f'`{name}`' for name in names)}\n", table]
    return parts


def _table(fields: Mapping[str, Field]) -> str:
    lines = ["| field | default | values | may change | meaning |", "|---|---|---|---|---|"]
    for name, field in fields.items():
        change, meaning = "yes" if field.may_change else "", field.meaning.replace("|", "\\|")
        values = expected(field).replace("|", "\\|")
        lines.append(f"| `{name}` | `{field.default!r}` | {values} | {change} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with write_atomically(PATH) as file:
        file.write(render())

"""The table of flags in docs/interop.md: its keys exist, and it has every flag of the reference."""

import pathlib
import re

import pytest

from sparsecap_jax.models import MODELS, model_fields
from sparsecap_jax.pruning import PRUNERS
from sparsecap_jax.runs.config import default_config
from sparsecap_jax.settings import fields_of
from sparsecap_jax.tokenizers import TOKENIZERS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "interop.md"
FLAG = re.compile(r"add_argument\(\s*\"(--\w+)\"")


def table():
    """Rows of the table: flags of the reference, and our keys."""
    text = PAGE.read_text("utf-8").partition("## Flags of the reference")[2].partition("\n## ")[0]
    for line in text.splitlines():
        if line.startswith("| `"):
            flags, keys = line.split("|")[1:3]
            yield re.findall(r"--\w+", flags), re.findall(r"`(\w+(?:\.\w+)?)`", keys)


def known_keys():
    config = default_config()
    sections = {name: [*part] for name, part in config.items() if hasattr(part, "keys")}
    keys = {*config} | {f"{name}.{key}" for name, part in sections.items() for key in part}
    keys |= {f"model.{key}" for name in MODELS for key in model_fields(name)}
    keys |= {f"pruner.{key}" for pruner in PRUNERS.values() for key in fields_of(pruner)}
    classes = TOKENIZERS.values()
    return keys | {f"tokenizer.{key}" for cls in classes for key in fields_of(cls.config)}


def test_our_keys_exist():
    rows = [keys for _, keys in table()]
    assert len(rows) > 50
    assert {key for keys in rows for key in keys} <= known_keys()


def test_every_flag_of_the_reference_has_a_row(request):
    reference = request.config.getoption("--reference")
    if not reference:
        pytest.skip("no checkout of the reference (--reference)")
    files = pathlib.Path(reference, "sparse_caption").rglob("*.py")
    code = [re.sub(r"^\s*#.*$", "", file.read_text("utf-8"), flags=re.MULTILINE) for file in files]
    theirs = {flag for source in code for flag in FLAG.findall(source)}
    assert len(theirs) > 60
    assert theirs <= {flag for flags, _ in table() for flag in flags}

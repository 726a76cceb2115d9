"""The front door: every name resolves, nothing is loaded before it is used, pages are current."""

import subprocess
import sys

import pytest

import sparsecap_jax as sc
from sparsecap_jax.commands.docs import DOCS, STUB, api_page, stub
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.extend import REGISTRIES, registry


def test_importing_loads_nothing():
    code = (
        "import sys, sparsecap_jax; "
        "print([m for m in ('jax', 'flax', 'numpy', 'optax', 'orbax') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert loaded == "[]\n"


@pytest.mark.parametrize("name", sc.__all__)
def test_names_resolve_and_are_described(name):
    value = getattr(sc, name)
    assert name == "__version__" or value.__doc__


def test_rooms_are_reached_and_unknown_names_are_not():
    assert sc.pruning.make_pruner is sc.make_pruner
    with pytest.raises(AttributeError, match="no attribute 'prune_everything'"):
        _ = sc.prune_everything


def test_the_generated_files_are_current():
    """If not: python -m sparsecap_jax.commands.docs"""
    assert STUB.read_text(encoding="utf-8") == stub()
    assert (DOCS / "api.md").read_text(encoding="utf-8") == api_page()


@pytest.mark.parametrize("kind", sorted(REGISTRIES))
def test_own_entries_register_once(kind, monkeypatch):
    entries = registry(kind)
    monkeypatch.setattr(entries, "_entries", dict(entries))
    entry = next(iter(entries.values()))
    name = f"test_entry_of_{kind}"
    assert sc.register(kind, name, entry) is entry
    assert registry(kind)[name] is entry
    first = next(iter(entries))
    with pytest.raises(ConfigError, match=f"{first!r} is registered already"):
        sc.register(kind, first, object())


def test_unknown_kinds_are_named():
    with pytest.raises(ConfigError, match="kind is 'modle'; did you mean 'model'"):
        sc.register("modle", "a", object())


def test_a_name_alone_imports_nothing():
    """Names of files are never imported: the user vouches for a module, or registers the entry."""
    with pytest.raises(ConfigError, match=r"add --plugin=this_module_shouts"):
        registry("pruner")["this_module_shouts:Thing"]
    assert "this_module_shouts" not in sys.modules
    with pytest.raises(ConfigError, match="plugin 'no_such_module': cannot be imported"):
        sc.use_plugin("no_such_module")


def test_a_plugin_offers_what_it_defines_alone(tmp_path, monkeypatch):
    (tmp_path / "thin_plugin.py").write_text("from subprocess import run\n")
    monkeypatch.syspath_prepend(tmp_path)
    sc.use_plugin("thin_plugin")
    with pytest.raises(ConfigError, match="thin_plugin defines no 'run'"):
        registry("dataset")["thin_plugin:run"]

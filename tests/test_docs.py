"""Pages: links lead somewhere, the site has every page, commands and Python of how-tos work."""

import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image
from tiny_runs import xla_flags

import sparsecap_jax as sc
from sparsecap_jax.runs.config import default_config

REPO = pathlib.Path(__file__).parents[1]
DOCS = REPO / "docs"
HOWTO = sorted((DOCS / "howto").glob("[!R]*.md"))
COMMANDS = [*HOWTO, DOCS / "commands.md", REPO / "README.md"]
PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(REPO.glob("*.md"))]

_spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "_site.py")
site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(site)


def blocks(path, language):
    """Return the fenced blocks of a page in one language."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def anchors(path):
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {site.slug(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_links_lead_somewhere(page):
    for target, anchor in site.links(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_commands_are_in_blocks(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"^(?:sparsecap|python|pip) .*$", text, re.MULTILINE)


def test_anchors_are_those_of_github():
    assert site.slug("`config.train`") == "configtrain"
    assert site.slug("Flags of the reference, and our keys") == (
        "flags-of-the-reference-and-our-keys"
    )
    assert site.slug("How do I ...") == "how-do-i-"


def test_the_site_lists_every_page():
    listed = re.findall(r"(\S+\.md)$", (REPO / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert pages <= {*listed}
    generated = {uri for uri, _ in site.reference_pages()}
    assert {*listed} == pages | generated | {*site.PROJECT, "LICENCES.md"}
    assert [path.name for path in HOWTO] == sorted(
        target
        for target, _ in site.links((DOCS / "howto/README.md").read_text("utf-8"))
        if "/" not in target
    )


def test_the_reference_has_every_name_of_the_front_door():
    door = dict(site.reference_pages())["reference/index.md"]
    assert {f"heading: {name}" for name in sc.__all__ if name != "__version__"} <= {
        *re.findall(r"heading: \w+", door)
    }
    homes = re.findall(r"^::: (\S+)$", door, re.MULTILINE)
    for home, name in zip(homes, sc._HOMES, strict=True):
        room, _, own = home.rpartition(".")
        assert getattr(importlib.import_module(room), own) is getattr(sc, name)


def commands(page):
    """Return the calls of `sparsecap` on a page, as lists of words."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = (re.sub(r"^(\w+=\S+ )*|\s+&$", "", line) for line in text.splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("sparsecap ")]


@pytest.mark.parametrize("page", COMMANDS, ids=lambda path: path.stem)
def test_commands_have_their_flags(page):
    package = "".join(path.read_text("utf-8") for path in (REPO / "sparsecap_jax").rglob("*.py"))
    for name, *words in commands(page):
        script = (REPO / "launch" / f"{name}.py").read_text(encoding="utf-8")
        for word in words:
            flag, _, value = word.partition("=")
            if flag.startswith("--config."):
                known = default_config("up_down", "supermask", "word")
                for part in flag.removeprefix("--config.").split("."):
                    assert part in known, word
                    known = known[part]
            elif flag == "--config" and value != "...":
                assert (REPO / value.partition(":")[0]).exists()
            elif flag.startswith("--") and flag != "--config":
                assert f'"{flag[2:]}"' in script + package, word


PYTHON = [page for page in HOWTO if blocks(page, "python")]


@pytest.mark.parametrize("page", PYTHON, ids=lambda path: path.stem)
def test_python_of_how_tos_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, shown = {}, []
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
        shown += capsys.readouterr().out.splitlines()
    if page.stem == "own_language":
        text = "\n".join(blocks(page, "python"))
        expected = re.findall(r"^print\(.*\)  # (\[.*?\])", text, re.MULTILINE)
        assert shown == expected and len(expected) == 2
    if page.stem == "no_java":
        assert 0 < names["scores"]["CIDEr"] <= 10 and "METEOR" not in names["scores"]
    if page.stem == "caption_photos":
        assert len(shown) == 1 and len(shown[0].split()) > 3


def launch(words, folder):
    """Run a command of a page in a folder; return what it prints."""
    name, *flags = words
    flags = [flag.replace("=configs/", f"={REPO}/configs/") for flag in flags]
    command = [sys.executable, str(REPO / "launch" / f"{name}.py"), *flags]
    one_device = {**os.environ, "XLA_FLAGS": xla_flags(1)}
    found = subprocess.run(command, cwd=folder, env=one_device, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_my_own_dataset(tmp_path, monkeypatch):
    """The page from its first file to trained captioners."""
    page = DOCS / "howto/own_dataset.md"
    photos, features = blocks(page, "json")
    extract, train, evaluate, inspect, train_features = commands(page)
    folder = tmp_path / "data/mine"
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate("abcd"):
        Image.new("RGB", (64, 64), (60 * number, 90, 30)).save(folder / f"images/{name}.jpg")
    (folder / "captions.json").write_text(photos, encoding="utf-8")
    launch(extract, tmp_path)
    launch(train, tmp_path)
    assert "CIDEr" in launch(evaluate, tmp_path)
    folder = tmp_path / "data/features_mine"
    folder.mkdir()
    (folder / "dataset_mine.json").write_text(features, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks(page, "python")), {})
    shown = launch(inspect, tmp_path)
    assert "train: features of 2 of 2 images" in shown and "val: features of 1 of 1" in shown
    launch(train_features, tmp_path)
    assert (tmp_path / "runs/mine_features/model.scap").exists()


def test_what_inspect_shows(shared):
    """The output on the page is that of the five images of the reference."""
    page = DOCS / "howto/feature_files.md"
    (block,) = blocks(page, "text")
    features = shared / "reference/coco5"
    words = ["prepare_data", "inspect", f"--features={features}"]
    assert launch(words, REPO).replace(str(features), "data/features") == block

"""Pages: links lead somewhere, anchors included, and the site has every page."""

import importlib.util
import pathlib
import re

import pytest

REPO = pathlib.Path(__file__).parents[1]
DOCS = REPO / "docs"
HOWTO = sorted((DOCS / "howto").glob("[!R]*.md"))
PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(REPO.glob("*.md"))]

_spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "_site.py")
site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(site)


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

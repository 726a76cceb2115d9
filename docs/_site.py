"""Hooks of the documentation site (mkdocs.yml): the README, pages of the reference, links.

Pages link to files of the repository by relative paths, as on GitHub. Those outside of docs/ become
part of the site.
"""

import ast
import pathlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

REPO = pathlib.Path(__file__).resolve().parents[1]
PROJECT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
ROOMS = {
    "Pruning": "pruning",
    "Models": "models",
    "Decoding": "decoding",
    "Tokenizers": "tokenizers",
    "Stores of features": "data.stores",
    "Objectives": "training.objectives",
    "Compact captioners": "runs.compaction",
}
_LINK = re.compile(r"\]\(([^()\s#]*)(#[^()\s]*)?\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def links(text: str) -> Iterator[tuple[str, str]]:
    """Yield path and anchor of each link to a file or a heading, those in code aside."""
    for target, anchor in _LINK.findall(_CODE.sub("", text)):
        if "://" not in target and not target.startswith("mailto:"):
            yield target, anchor.removeprefix("#")


def slug(heading: str, separator: str = "-") -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def repository_path(page: str, target: str) -> str:
    """Return the path of a link's target from the top of the repository.

    Args:
        page: path of the page within the site: that within docs/, else that in the repository.
        target: relative path, as the page has it.
    """
    home = posixpath.dirname(page if (REPO / page).is_file() else f"docs/{page}")
    return posixpath.normpath(posixpath.join(home, target))


def site_path(path: str) -> str:
    """Return where a file of the repository lies within the site."""
    if (REPO / path).is_dir():
        path = f"{path}/README.md"
    return path.removeprefix("docs/")


def on_config(config: Any) -> Any:
    """Give headings the anchors that they have on GitHub."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages about the project, what pages link to, and the reference."""
    from mkdocs.structure.files import File

    waiting = [*PROJECT, *(page.src_uri for page in files.documentation_pages())]
    while waiting:
        path = waiting.pop()
        if path not in files.src_uris:
            files.append(File(path, str(REPO), config.site_dir, config.use_directory_urls))
        if path.endswith(".md"):
            text = (REPO / repository_path(path, posixpath.basename(path))).read_text("utf-8")
            targets = (repository_path(path, target) for target, _ in links(text) if target)
            paths = {site_path(target) for target in targets if (REPO / target).exists()}
            waiting += sorted(paths - files.src_uris.keys() - {*waiting})
    for uri, text in reference_pages():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links to where the site has their targets."""
    uri = page.file.src_uri

    def moved(link: re.Match) -> str:
        target, anchor = link[1], link[2] or ""
        path = repository_path(uri, target)
        if not target or "://" in target or not (REPO / path).exists():
            return link[0]
        return f"]({posixpath.relpath(site_path(path), posixpath.dirname(uri) or '.')}{anchor})"

    return _LINK.sub(moved, markdown)


def reference_pages() -> Iterator[tuple[str, str]]:
    """Yield path and text of each page of the reference, for mkdocstrings to fill in."""
    door = {
        name: _home(module, {"evaluate": "evaluate_run"}.get(name, name))
        for module, names in _constant("", "_NAMES").items()
        for name in names.split()
    }
    yield "reference/index.md", _page("The front door: `import sparsecap_jax as sc`", "", door)
    for title, room in ROOMS.items():
        names = _constant(room, "_HOMES" if room == "decoding" else "__all__")
        homes = {name: _home(room, name) for name in names if name not in door}
        there = ", ".join(f"`{name}`" for name in names if name in door)
        text = f"At [the front door](index.md): {there}.\n" if there else ""
        yield f"reference/{room}.md", _page(f"{title}: `sparsecap_jax.{room}`", text, homes)


def _home(room: str, name: str) -> str:
    if room == "decoding":
        room = f"decoding.{_constant('decoding', '_HOMES')[name]}"
    return f"sparsecap_jax.{room}.{name}"


def _page(title: str, text: str, homes: Mapping[str, str]) -> str:
    parts = (f"::: {home}\n    options: {{heading: {name}}}\n" for name, home in homes.items())
    return "\n".join([f"# {title}\n", text, *parts])


def _constant(room: str, name: str) -> Any:
    """Return a constant of a package or module without importing what it imports."""
    path = REPO.joinpath("sparsecap_jax", *room.split(".") if room else "")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise LookupError(f"{path} has no {name}")

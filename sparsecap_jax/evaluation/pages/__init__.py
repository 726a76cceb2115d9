"""Pages for a browser, each one file that needs nothing else: no network, no server.

A page is assembled of a template, styles and scripts in this folder. Its content security policy
lets those run that are named by their hash, and nothing be loaded; data is deflated and in base64,
so that no text in it is ever markup.
"""

import base64
import hashlib
import html
import pathlib
import re
import zlib
from collections.abc import Mapping, Sequence

_FOLDER = pathlib.Path(__file__).parent


def assemble(
    template: str,
    *,
    styles: Sequence[str],
    scripts: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
    images: str = "data:",
    connect: str = "'none'",
) -> list[str]:
    """Return the parts of a page, between which content belongs.

    Args:
        template: name of a file in this folder, with `{{NAME}}` for texts, `{{styles}}`,
            `{{scripts}}`, `{{policy}}`, and `{{content}}` wherever the page is cut.
        styles: names of its style sheets.
        scripts: names of its scripts, which run as one.
        texts: text by the name that stands for it; becomes text, never markup.
        images: sources of pictures that the page may show.
        connect: addresses that its scripts may ask.
    """
    style = "\n".join(_read(name) for name in styles)
    script = "\n".join(_read(name) for name in scripts)
    script = f'\n"use strict";\n(() => {{\n{script}}})();\n' if script else ""
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src {images}; "
        f"connect-src {connect}; style-src {_hash(style)}; script-src {_hash(script)}"
    )
    values = {name: html.escape(text) for name, text in (texts or {}).items()}
    values |= {"policy": policy, "styles": style, "scripts": script}
    parts = _read(template).split("{{content}}")
    return [re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], part) for part in parts]


def block(name: str, content: bytes) -> str:
    """Return an element of a page that holds deflated bytes, for scripts to inflate."""
    return text_block(name, base64.b64encode(zlib.compress(content, 9)).decode())


def text_block(name: str, text: str) -> str:
    """Return an element of a page that holds text of letters without meaning to HTML."""
    if re.search(r"[<&]", text):
        raise ValueError(f"{name}: expected text without < and &")
    return f'<script type="text/plain" id="{name}">{text}</script>\n'


def data_url(kind: str, content: bytes) -> str:
    """Return a URL that holds a file of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the source expression of a script or style; 'none' where it is empty."""
    if not text:
        return "'none'"
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

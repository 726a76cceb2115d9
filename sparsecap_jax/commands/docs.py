"""docs/api.md, generated from the docstrings: `python -m sparsecap_jax.commands.docs`."""

import inspect
import pathlib
import re
from collections.abc import Callable

import sparsecap_jax

DOCS = pathlib.Path(__file__).parents[2] / "docs"
_API = """# The front door

```python
import sparsecap_jax as sc
```

Each name is loaded when it is first used; importing the package itself takes milliseconds. Rooms
of the package (`sc.pruning`, `sc.models`, `sc.decoding` and so on) are reached in the same way.
This page is generated from the docstrings, which have the arguments in full: `help(sc.train)`.
"""


def api_page() -> str:
    """Return docs/api.md: every name of the front door with its signature and summary."""
    parts = [_API]
    for name in sparsecap_jax.__all__:
        value = getattr(sparsecap_jax, name)
        if callable(value):
            parts.append(f"### `sc.{name}`\n\n{_signature(name, value)}{_summary(value)}\n")
    return "\n".join(parts)


def _signature(name: str, value: Callable) -> str:
    if inspect.isclass(value):
        return ""
    parameters = inspect.signature(value).parameters.values()
    shown = ", ".join(
        str(parameter.replace(annotation=parameter.empty)).replace(" ", "")
        if parameter.default is parameter.empty
        else f"{parameter.name}={getattr(parameter.default, '__name__', repr(parameter.default))}"
        for parameter in parameters
    )
    return f"```python\nsc.{name}({shown})\n```\n\n"


def _summary(value: Callable) -> str:
    """Return the docstring up to its sections, as Markdown."""
    text = inspect.getdoc(value) or ""
    text = re.split(r"\n(?:Args|Attributes|Returns|Raises|Yields|References):\n", text)[0].strip()
    blocks = [
        f"```python\n{inspect.cleandoc(block)}\n```" if block.startswith("    ") else block
        for block in text.split("\n\n")
    ]
    return "\n\n".join(blocks)


if __name__ == "__main__":
    (DOCS / "api.md").write_text(api_page(), encoding="utf-8")

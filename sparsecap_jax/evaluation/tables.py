"""Tables as text, Markdown and LaTeX; CSV is `files.write_table`."""

import re
from collections.abc import Iterable, Sequence

MISSING = "-"
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}


def cell(value: object, digits: int = 3) -> str:
    """Return a figure as text: counts with commas, other numbers with `digits`, None as a dash."""
    if value is None:
        return MISSING
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def text_table(titles: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Return an aligned table, the first `texts` columns to the left, the others to the right."""
    lines = [[*map(str, row)] for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            word.ljust(width) if number < texts else word.rjust(width)
            for number, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(map(_markdown, cells))} |" for cells in (titles, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(titles), *lines[1:], ""])


def latex_table(titles: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    r"""Return a LaTeX `tabular` with the rules of `booktabs`, the first `texts` columns left."""
    body = [" & ".join(map(_latex, cells)) + r" \\" for cells in (titles, *rows)]
    columns = "l" * texts + "r" * (len(titles) - texts)
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0]]
    return "\n".join([*lines, r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}", ""])


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _latex(text: str) -> str:
    if text == MISSING:
        return "--"
    plain = " ".join(text.split())
    return re.sub(r"[&%$#_{}\\~^<>|]", lambda found: _LATEX[found[0]], plain)

"""Tables as text, Markdown and LaTeX, written out by hand."""

from sparsecap_jax.evaluation.tables import cell, latex_table, markdown_table, text_table

ROWS = [["a_1 & b", "1,234", "-"], ["50% {x}", "7", "0.5"]]


def test_cells():
    assert [cell(value) for value in (None, 1234567, 0.12345, "a", 0)] == [
        *("-", "1,234,567", "0.123", "a", "0")
    ]
    assert [cell(value, 1) for value in (88.923, 7, None)] == ["88.9", "7", "-"]


def test_text_is_aligned():
    assert text_table(["run", "nonzeros", "CIDEr"], ROWS).split("\n") == [
        "run      nonzeros  CIDEr",
        "a_1 & b     1,234      -",
        "50% {x}         7    0.5",
    ]


def test_markdown_keeps_bars_and_lines_within_a_cell():
    table = markdown_table(["a|b", "c"], [["x\ny", "-"]])
    assert table == "| a\\|b | c |\n|---|---|\n| x y | - |\n"


def test_latex_escapes_what_it_would_read_as_commands():
    assert latex_table(["run", "non$zeros", "CIDEr"], ROWS).split("\n") == [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"run & non\$zeros & CIDEr \\",
        r"\midrule",
        r"a\_1 \& b & 1,234 & -- \\",
        r"50\% \{x\} & 7 & 0.5 \\",
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    last = latex_table(["a"], [[r"\input{x} #1 ~ ^ <b> |"]], texts=1).split("\n")[5]
    assert last == (
        r"\textbackslash{}input\{x\} \#1 \textasciitilde{} \textasciicircum{}"
        r" \textless{}b\textgreater{} \textbar{} \\"
    )

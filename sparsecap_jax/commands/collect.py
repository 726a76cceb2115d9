"""One table and the charts of many models (`sparsecap report RUN...`)."""

import pathlib
from collections.abc import Callable, Sequence

from sparsecap_jax.commands.names import distinct_names
from sparsecap_jax.errors import CheckpointError, SparsecapError
from sparsecap_jax.evaluation import collection_plots as plots
from sparsecap_jax.evaluation.collected import Collected, Row, shown, table_rows
from sparsecap_jax.evaluation.tables import latex_table, markdown_table, text_table
from sparsecap_jax.files import write_atomically, write_table
from sparsecap_jax.runs.collection import find_runs, read_run
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.text import counted

TABLE = "table"
UNREADABLE = "unreadable"


def collect_runs(
    sources: Sequence[str | pathlib.Path],
    output: str | pathlib.Path,
    *,
    published: bool = False,
    report: Callable[[str], None] = print,
) -> list[Row]:
    """Collect the figures of models in one table, and draw them.

    Writes `table.csv`, `table.md`, `table.tex`, and a chart for whatever the models have:
    `quality.png` (CIDEr over sparsity), `bubbles.png` (CIDEr over weights, areas are bytes),
    `layerwise.png` and `progression.png` (sparsity of tensors, at the end and over the steps),
    `curves.png` (logs), `densities.png` (weights) and `similarity.png` (masks and layers).

    Args:
        sources: runs, finished or not, model files, folders of results of the PyTorch reference,
            folders that hold any of these, and names of captioners that come with the package.
        output: folder to write to.
        published: whether to draw the papers' published results behind `quality.png` and
            `bubbles.png`.
        report: takes one line at a time.

    Returns:
        Rows of the table, see `evaluation.collected.table_rows`.

    Raises:
        CheckpointError: a source is no run and holds none, or none of them can be read.
    """
    runs, faults = [], []
    for name, run, given in _named(sources):
        try:
            runs.append(read_run(run, name, given))
        except SparsecapError as error:
            faults.append(error)
            report(f"unreadable: {error}")
            runs.append(Collected(name, run, {"status": UNREADABLE, "model": None, "method": None}))
    if len(faults) == len(runs):
        raise CheckpointError(str(faults[0])) from faults[0]
    rows = table_rows(runs)
    report(text_table(*shown(rows, brief=True)))
    output = pathlib.Path(output)
    write_tables(output, rows)
    charts = draw_runs(output, [run for run in runs if run.figures["model"]], published, report)
    report(f"wrote {', '.join(f'{TABLE}.{kind}' for kind in ('csv', 'md', 'tex'))} to {output}")
    report(f"wrote {', '.join(charts)} to {output}" if charts else "nothing to draw")
    return rows


def _named(
    sources: Sequence[str | pathlib.Path],
) -> list[tuple[str, pathlib.Path, str | pathlib.Path | None]]:
    """Return name and path of each run, and how the user named it where it is the source itself."""
    found: dict[pathlib.Path, str | pathlib.Path | None] = {}
    for source in sources:
        runs = find_runs(source)
        alone = len(runs) == 1 and runs[0] == resolve_run(source)
        found |= {run.absolute(): source if alone else None for run in runs}
    of_package = {run: str(given) for run, given in found.items() if _is_name(run, given)}
    others = [run for run in found if run not in of_package]
    names = of_package | dict(zip(others, distinct_names(others), strict=True) if others else ())
    return [(names[run], run, given) for run, given in found.items()]


def _is_name(run: pathlib.Path, given: str | pathlib.Path | None) -> bool:
    """Return whether a run was given by its name in the package."""
    return given is not None and pathlib.Path(given).absolute() != run


def write_tables(folder: pathlib.Path, rows: Sequence[Row]) -> None:
    """Write a table as CSV, with empty cells for missing figures, as Markdown and as LaTeX."""
    write_table(folder / f"{TABLE}.csv", rows)
    titles, cells, texts = shown(rows)
    with write_atomically(folder / f"{TABLE}.md") as file:
        file.write(markdown_table(titles, cells))
    with write_atomically(folder / f"{TABLE}.tex") as file:
        file.write(latex_table(titles, cells, texts))


def draw_runs(
    folder: pathlib.Path,
    runs: Sequence[Collected],
    published: bool,
    report: Callable[[str], None],
) -> list[str]:
    """Draw what there is to draw, and return the names of the files."""
    results = plots.common_results(runs)
    charts = {
        "layerwise.png": plots.draw_layerwise,
        "progression.png": plots.draw_progression,
        "curves.png": plots.draw_curves,
        "densities.png": plots.draw_densities,
        "similarity.png": plots.draw_similarity,
    }
    written = []
    if results is not None:
        scored = {run.name for run in runs if "CIDEr" in run.results.get(results, ())}
        others = [run.name for run in runs if run.name not in scored]
        if others:
            left_out = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
            without = counted(len(others), "run")
            report(f"charts of CIDEr show {results}, without {without}: {left_out}")
        if published:
            report(plots.published_note(runs, results).replace("\n", ", "))
        for name, draw in (
            ("quality.png", plots.draw_quality),
            ("bubbles.png", plots.draw_bubbles),
        ):
            if draw(folder / name, runs, results, published):
                written.append(name)
    return written + [name for name, draw in charts.items() if draw(folder / name, runs)]

"""The table of many models by hand, and the published results."""

import pathlib

import pytest

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.collected import (
    Collected,
    score_figures,
    shown,
    table_rows,
    text_figures,
)
from sparsecap_jax.evaluation.published import METHODS, published_results

SPARSE = {"status": "finished", "model": "up_down", "method": "supermask", "sparsity": 0.9875}
SPARSE |= {"nonzeros": 664415, "bytes": 2_345_678, "embedding_parameters": 7}
DENSE = {"status": "unfinished, step 8", "model": "up_down", "method": "dense"}


def models():
    sparse = Collected("a", pathlib.Path("a"), SPARSE)
    sparse.results = {
        "validation": score_figures({"CIDEr": 1.0734, "Bleu_4": 0.3456}, "a"),
        "test_beam_2": {
            **score_figures({"CIDEr": 1.09, "METEOR": None, "loss": 2.0}, "a"),
            **text_figures({"words": 9.25, "vocabulary": 500, "copied": 0.25}, "a", 10_000),
        },
    }
    return [Collected("b", pathlib.Path("b"), DENSE), sparse]


def test_rows_scores_times_100_tests_first():
    rows = table_rows(models())
    assert [(row["run"], row["results"]) for row in rows] == [
        ("a", "test_beam_2"), ("a", "validation"), ("b", None)
    ]  # fmt: skip
    assert rows[0] == {
        **{"run": "a", "status": "finished", "model": "up_down", "method": "supermask"},
        **{"results": "test_beam_2", "sparsity": 0.9875, "nonzeros": 664415, "bytes": 2345678},
        **{"Bleu_4": None, "CIDEr": 109.0, "words": 9.25, "vocabulary": 500},
        **{"vocabulary_coverage": 5.001, "novel": 75.0, "embedding_parameters": 7},
    }
    assert (rows[1]["CIDEr"], rows[1]["Bleu_4"]) == (107.34, 34.56)


def test_what_is_shown_has_dashes_for_what_is_missing():
    titles, cells, texts = shown(table_rows(models()))
    assert titles == [
        *("run", "status", "model", "method", "results", "sparsity", "nonzeros", "bytes"),
        *("B-4", "CIDEr", "length", "words used", "vocabulary %", "novel %"),
    ]
    start = ["a", "finished", "up_down", "supermask"]
    sizes = ["0.988", "664,415", "2,345,678"]
    assert cells[0] == [*start, "test_beam_2", *sizes, "-", "109.0", "9.25", "500", "5.0", "75.0"]
    assert cells[1] == [*start, "validation", *sizes, "34.6", "107.3", *"----"]
    assert cells[2] == ["b", "unfinished, step 8", "up_down", "dense", *"----------"]
    assert texts == 5
    brief = ["run", "status", "method", "results", "sparsity", "nonzeros", "bytes", "B-4", "CIDEr"]
    assert shown(table_rows(models()), brief=True)[0] == brief


def test_figures_of_text():
    content = {"words": 9.0, "vocabulary": 40, "coverage": 0.125, "copied": None}
    figures = {"words": 9.0, "vocabulary": 40, "reference_coverage": 12.5}
    assert text_figures(content, "x", None) == figures
    assert text_figures(content, "x", 102) == {**figures, "vocabulary_coverage": 40.0}
    assert text_figures({}, "x", 102) == {"words": None, "vocabulary": None}


@pytest.mark.parametrize("value", ["0.5", True, [], float("nan"), float("inf"), 1e300])
def test_scores_are_numbers(value):
    with pytest.raises(DataError, match=r"scores\.json: CIDEr is .*; expected a number"):
        score_figures({"CIDEr": value}, "scores.json")


def test_published_results_are_those_of_the_papers():
    rows = published_results()
    found = {
        (row["model"], row["variant"], row["method"], row["sparsity"]): row["CIDEr"]
        for row in rows
        if row["source"] == METHODS
    }
    assert found["up_down", "", "dense", 0.0] == 111.3
    assert found["up_down", "", "supermask", 0.991] == 107.8
    assert found["relation_transformer", "", "hard (uniform)", 0.988] == 59.8
    # What the published captions score (shared/data/published_test_captions).
    assert found["soft_attention", "GRU", "supermask", 0.8] == 94.2
    assert found["soft_attention", "LSTM", "supermask", 0.975] == 88.5
    assert all(0 <= row["sparsity"] < 1 and 0 < row["CIDEr"] < 140 for row in rows)
    columns = ("source", "model", "variant", "method", "sparsity")
    assert len({tuple(row[column] for column in columns) for row in rows}) == len(rows) == 114

"""The summary of a run: samples over time, charts by hand, the page in a browser."""

import logging
import re

import chromium
import pytest
from PIL import Image
from tiny_runs import constant_config, make_data, tiny_config

from sparsecap_jax.data.records import Record
from sparsecap_jax.evaluation.pages.charts import chart, heat_map, nice_ticks, spread
from sparsecap_jax.evaluation.pages.summary import Progress, Sample, panels, summary_page
from sparsecap_jax.evaluation.summary_picture import summary_picture
from sparsecap_jax.files import read_csv
from sparsecap_jax.runs.live_summary import read_samples, sample_records
from sparsecap_jax.runs.loop import train

HOSTILE = '<img src=x onerror="document.title = 1"></td> red'
PROGRESS = Progress(
    title="up_down, supermask",
    tables={
        "train": {"caption_loss": ([10, 20], [4.0, 2.0]), "sparsity": ([10, 20], [0.0, 0.5])},
        "validation": {"loss": ([10, 20], [3.5, 2.5]), "CIDEr": ([10, 20], [0.75, 0.5])},
        "sparsity": {"a/kernel": ([10, 20], [0.0, 0.25]), "b/<kernel>": ([10, 20], [0.5, 1.0])},
    },
    samples=[(10, {"7": HOSTILE}), (20, {"7": "a red ball"})],
    last_step=40,
)
SAMPLES = [Sample("7", ["a red ball", "one <b>ball</b>"])]


@pytest.mark.parametrize(
    ("interval", "ticks"),
    [
        ((0, 1), [0, 0.5, 1]),
        ((0.1, 3.9), [0, 1, 2, 3, 4]),
        ((4.9, 5.03), [4.9, 4.95, 5, 5.05]),
        ((2, 2), [2, 2.0000005]),
        ((-9e-9, 0.9), [0, 0.5, 1]),
        ((0, 1e5), [0, 5e4, 1e5]),
    ],
)
def test_ticks(interval, ticks):
    found = nice_ticks(*map(float, interval))
    assert found[: len(ticks)] == pytest.approx(ticks, abs=1e-12)
    assert found[0] <= interval[0] + 1e-6 and found[-1] >= interval[1]


def test_ticks_of_steps_are_whole():
    assert nice_ticks(0.0, 3.0, integers=True) == [0, 1, 2, 3]


def test_places_are_spread():
    assert spread(3, 4) == [0, 1, 2]
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(1000, 4) == [0, 333, 666, 999]
    assert [r.image_id for r in sample_records([Record(n) for n in range(7)])] == [0, 2, 4, 6]


def test_a_curve_has_its_points_where_they_belong():
    drawn = chart("Loss <1>", {"train": ([0, 5, 10], [0.0, 0.5, float("nan")])}, 10)
    # 46 to 400 from left to right, 188 to 8 from bottom to top; ticks from 0 to 0.6.
    (path,) = re.findall(r'class="curve model-0" d="(M46[^"]*)"', drawn)
    assert path == "M46.0 188.0L223.0 38.0"
    assert "Loss &lt;1&gt;: train from 0 at step 0 to 0.5 at step 5" in drawn
    assert "<title>step 5: 0.5</title>" in drawn
    assert chart("Loss", {"train": ([1], [float("inf")])}, 10) == ""


def test_long_curves_are_averaged():
    steps = list(range(960))
    drawn = chart("x", {"y": (steps, [float(step % 2) for step in steps])}, 960)
    (path,) = re.findall(r'class="curve model-0" d="(M46[^"]*)"', drawn)
    points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
    assert len(points) == 240 and {y for _, y in points} == {98.0}  # 0.5, half way up
    assert "<circle" not in drawn


def test_a_map_has_a_cell_for_each_validation():
    drawn = heat_map("layers", PROGRESS.tables["sparsity"])
    assert re.findall(r'fill-opacity="([\d.]+)"', drawn) == ["0.000", "0.250", "0.500", "1.000"]
    assert "b/&lt;kernel&gt;, step 20: 100.00%" in drawn and ">25.00%<" in drawn


def test_charts_without_figures_are_left_out():
    found = panels(PROGRESS)
    assert [title for title, _ in found] == ["Loss", "CIDEr", "Sparsity of prunable weights"]
    assert found[0][1] == {"training": ([10, 20], [4.0, 2.0]), "validation": ([10, 20], [3.5, 2.5])}


def test_the_page_shows_captions_as_text_and_says_what_is_best():
    page = summary_page(PROGRESS, SAMPLES)
    assert "<img" not in page and "<mark>&lt;img</mark> <mark>src=x</mark>" in page
    assert "<td>a red ball</td>" in page and "one &lt;b&gt;ball&lt;/b&gt;" in page
    assert "Step 20 of 40; renewed at every validation." in page
    assert 'http-equiv="refresh" content="60"' in page
    assert re.search(r"highest CIDEr</th><td>10</td><td>3.5000</td><td>0.7500</td>", page)
    ended = Progress(**{**vars(PROGRESS), "finished": True, "best_step": 20})
    page = summary_page(ended, SAMPLES)
    assert "Step 20 of 40, finished." in page and "refresh" not in page
    assert re.search(r">best</th><td>20</td>", page)
    assert summary_page(Progress("x", {}, [], 5), [])


def test_damaged_samples_are_left_out(tmp_path, caplog):
    path = tmp_path / "samples.jsonl"
    lines = [
        '{"step": 4, "captions": {"1": "a"}}',
        "[]",
        '{"step": 4',
        '{"step": -1, "captions": {}}',
    ]
    lines += ['{"step": 8, "captions": {"1": 3}}', '{"step": 8, "captions": {"1": "b"}}', "\0\0"]
    path.write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        assert read_samples(path) == [(4, {"1": "a"}), (8, {"1": "b"})]
    assert len(caplog.messages) == 5
    assert read_samples(path, 7) == [(4, {"1": "a"})]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    pages = []

    def report(line):
        if "| validation:" in line:
            pages.append((folder / "run/summary.html").read_text())

    train(tiny_config(make_data(folder / "data")), folder / "run", report)
    return folder / "run", pages


def test_the_page_is_current_at_each_validation(trained):
    workdir, pages = trained
    states = [re.search(r"<p>(Step .*?)</p>", page)[1] for page in pages]
    assert states == [f"Step {step} of 12; renewed at every validation." for step in (4, 8, 12)]
    samples = read_samples(workdir / "samples.jsonl")
    assert [step for step, _ in samples] == [4, 8, 12]
    assert [*samples[0][1]] == ["33", "35", "36", "38"]  # of 33 to 38
    last = (workdir / "summary.html").read_text()
    assert "Step 12 of 12, finished." in last
    loss = float(read_csv(workdir / "validation.csv")[-1]["loss"])
    assert f"validation {loss:.4g}</li>" in last
    with Image.open(workdir / "summary.png") as picture:
        assert picture.size[0] == 1540 and len(picture.convert("RGB").getcolors(10**6)) > 500


def test_a_summary_that_cannot_be_written_is_a_warning(trained, tmp_path, caplog):
    config = constant_config(trained[0].parent / "data", steps=4)
    (tmp_path / "run/summary.html").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert train(config, tmp_path / "run", lambda line: None)["step"] == 4
    warnings = [line for line in caplog.messages if line.startswith("no summary: ")]
    assert len(warnings) == 2 and "summary.html" in warnings[0]


def test_the_picture_needs_no_samples_and_no_masks(tmp_path):
    progress = Progress("dense", {"train": {"caption_loss": ([1, 2], [2.0, 1.0])}}, [], 2)
    summary_picture(tmp_path / "a.png", progress, SAMPLES)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1540, 374)


@pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
def test_the_page_in_a_browser(tmp_path):
    (tmp_path / "page.html").write_text(summary_page(PROGRESS, SAMPLES))
    with chromium.browser(360, 740) as driver:
        driver.get(chromium.url(tmp_path / "page.html"))
        assert driver.title == "up_down, supermask"
        cells = [cell.text for cell in driver.find_elements("css selector", ".sample td")]
        assert cells == ["a red ball", HOSTILE]
        marked = [one.text for one in driver.find_elements("css selector", ".sample mark")]
        assert marked == ["<img", "src=x", 'onerror="document.title', '1"></td>']
        assert driver.execute_script("return document.documentElement.scrollWidth") == 360
        assert len(driver.find_elements("css selector", ".curve")) == 8  # and in the legends
        assert driver.get_log("browser") == []

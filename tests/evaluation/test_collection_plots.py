"""What the charts of many models show: lines, bubbles and cells are read back from the figures."""

import pathlib

import numpy as np
import pytest

from sparsecap_jax.evaluation import collection_plots, plots
from sparsecap_jax.evaluation.collected import Collected

PATH = pathlib.Path("x.png")
RESULTS = "test_beam_2"


@pytest.fixture
def figures(monkeypatch):
    """The figures that would be written."""
    drawn = []
    for module in (collection_plots, plots):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: drawn.append(figure))
    return drawn


def model(name, method="supermask", target=0.95, cider=100.0, architecture="up_down", **more):
    figures = {"model": architecture, "method": method, "nonzeros": 1000, "bytes": 4000}
    run = Collected(name, pathlib.Path(name), figures, {RESULTS: {"CIDEr": cider}}, target)
    vars(run).update(more)
    return run


def lines(axis):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axis.lines}


def test_quality_is_the_mean_of_a_method_at_a_target(figures):
    runs = [model("a", cider=90.0), model("b", cider=100.0), model("c", target=0.975, cider=80.0)]
    runs += [model("d", "dense", None, 110.0), model("e", "dense", None, 7.0, "transformer")]
    assert collection_plots.draw_quality(PATH, runs, RESULTS)
    (figure,) = figures
    (axis,) = figure.axes  # an architecture without a pruned model has none
    assert axis.get_title() == "up_down"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.95", "0.975"]
    (bars,) = axis.containers
    places, means = bars.lines[0].get_data(orig=False)
    np.testing.assert_allclose(places, [0, 1])
    np.testing.assert_allclose(means, [95.0, 80.0])
    assert lines(axis)["dense"][1] == [110.0, 110.0]
    assert not collection_plots.draw_quality(PATH, runs[3:], RESULTS)


def test_published_curves_are_drawn_behind(figures):
    runs = [model("a", target=0.9, cider=90.0), model("b", "dense", None, 95.0)]
    assert collection_plots.draw_quality(PATH, runs, RESULTS, published=True)
    (axis,) = figures[0].axes
    ticks = [label.get_text() for label in axis.get_xticklabels()]
    assert ticks == ["0.9", "0.95", "0.975", "0.988", "0.991"]
    places, scores = lines(axis)["COCO, published: supermask"]
    assert [*places] == [1, 2, 3, 4] and [*scores] == [112.5, 110.6, 109.0, 107.8]
    assert {*lines(axis)["COCO, published: dense"][1]} == {111.3}
    assert "COCO, published: LSTM supermask" not in lines(axis)
    assert figures[0].get_supxlabel() == "grey: published, of COCO's Karpathy test split"


def test_runs_on_other_data_are_named_next_to_published_results(figures):
    runs = [model("a", target=0.9), model("b", other_data="toy"), model("c", other_data="photos")]
    runs[2].results = {}  # not drawn
    note = "grey: published, of COCO's Karpathy test split\n"
    note += "which runs on other data do not compare with: toy"
    assert collection_plots.draw_quality(PATH, runs, RESULTS, published=True)
    assert figures[0].get_supxlabel() == note
    assert collection_plots.draw_bubbles(PATH, runs, RESULTS, published=True)
    (axis,) = figures[1].axes
    assert axis.get_title() == f"area: bytes of the weights' file\n{note}"
    for draw in (collection_plots.draw_quality, collection_plots.draw_bubbles):
        draw(PATH, runs, RESULTS)
    assert figures[2].get_supxlabel() == ""
    assert figures[3].axes[0].get_title() == "area: bytes of the weights' file"


def test_areas_of_bubbles_are_in_proportion_to_bytes(figures):
    small, large = model("a"), model("b", cider=120.0, architecture="transformer")
    large.figures |= {"bytes": 40_000, "nonzeros": 10_000}
    assert collection_plots.draw_bubbles(PATH, [small, large], RESULTS)
    (axis,) = figures[0].axes
    first, _, second, _ = axis.collections  # and one of each model for the legend
    assert first.get_sizes() == pytest.approx([150]) and second.get_sizes() == pytest.approx([1500])
    assert first.get_offsets().tolist() == [[1000, 100]]
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["a, 0.004 MB", "b, 0.04 MB"]


def test_layers_of_large_models_are_means_weighted_by_size(figures):
    few = [{"tensor": "a/x/kernel", "size": 3, "sparsity": 0.5}]
    many = [
        {"tensor": f"layer_{n // 2}/part/w_{n}", "size": 1 + 2 * (n % 2), "sparsity": n % 2}
        for n in range(42)
    ]
    runs = [model("a", tensors=few), model("b", tensors=many), model("c", "dense", tensors=many)]
    assert collection_plots.draw_layerwise(PATH, runs)
    first, second = figures[0].axes
    assert [*lines(first)["a"][1]] == [0.5]
    assert [*lines(second)["b"][1]] == [0.75] * 21  # (1 x 0 + 3 x 1) / 4
    assert first.get_xticklabels()[0].get_text() == "a/x/kernel"
    assert second.get_xticklabels()[0].get_text() == "layer_0/part"


def test_sparsity_over_the_steps(figures, tmp_path):
    (tmp_path / "sparsity.csv").write_text("step,embed/embedding,logit_0/kernel\n1,0.1,\n2,0.3,1\n")
    (tmp_path / "train.csv").write_text("step,sparsity\n1,0.25\n2,1e300\n")
    run = model("a", directory=tmp_path, curves=["train", "sparsity"])
    assert collection_plots.draw_progression(PATH, [run, model("b")])
    (axis,) = figures[0].axes
    drawn = lines(axis)
    assert [*drawn["embed/embedding"][1]] == [0.1, 0.3] and [*drawn["logit_0/kernel"][0]] == [2]
    assert [*drawn["target"][1]] == [0.95, 0.95]
    np.testing.assert_array_equal(drawn["overall"][1], [0.25, np.nan])  # what no axis can hold


def test_similarity_of_masks_and_layers(figures):
    bits = [np.array(row, np.uint8) for row in ([0b11000000], [0b01100000], [0b1])]
    runs = [model(str(n), masks={"w": one}) for n, one in enumerate(bits)]
    runs[2].masks = {"v": bits[2]}  # of another architecture
    distances = np.array([[0.0, 0.5], [0.5, 0.0]])
    runs.append(model("d", "dense", layers={"encoder": distances}))
    assert collection_plots.draw_similarity(PATH, runs)
    shown = [axis for axis in figures[0].axes if axis.images]
    assert len(shown) == 2
    assert [text.get_text() for text in shown[0].texts] == ["0.333"] * 2
    assert [text.get_text() for text in shown[1].texts] == ["0.5"] * 2
    assert not collection_plots.draw_similarity(PATH, runs[2:3])

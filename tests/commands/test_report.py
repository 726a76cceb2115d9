"""Tables and charts of many runs: dense, pruned, imported, unfinished, files, the reference's."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from captioner_runs import SIZES, make_run
from PIL import Image

from sparsecap_jax.commands.names import distinct_names
from sparsecap_jax.commands.report import report_runs
from sparsecap_jax.errors import CheckpointError, DataError
from sparsecap_jax.evaluation.collection_plots import common_results
from sparsecap_jax.files import read_csv, write_json
from sparsecap_jax.pruning.paths import by_path, nest, select
from sparsecap_jax.pruning.summary import weight_counts
from sparsecap_jax.runs.collection import find_runs, read_run
from sparsecap_jax.runs.directory import load_run, save_model, save_run

REPO = pathlib.Path(__file__).parents[2]
TEXT = {"words": 8.5, "vocabulary": 17, "coverage": 0.5, "distinct": 1.0, "copied": 0.25}


def prune(folder, model="up_down", seed=0, name="supermask"):
    """Write a run with random masks, three quarters of the weights pruned; and its logs."""
    run = load_run(make_run(folder, model, seed=seed))
    rng = np.random.default_rng(seed)
    leaves = by_path(run.params)
    masks = {path: np.float32(rng.random(leaves[path].shape) < 0.25) for path in select(run.params)}
    params = nest({path: leaf * masks.get(path, 1.0) for path, leaf in leaves.items()})
    config = json.loads((folder / "config.json").read_text())
    save_run(folder, dataclasses.replace(run, params=params, masks=nest(masks)))
    config["pruner"] = {"name": name, "sparsity": 0.75}
    write_json(folder / "config.json", config)
    return folder


@pytest.fixture
def runs(tmp_path):
    """A folder of runs: `dense`, `deep/sparse`, `deep/file.scap`, `unfinished`, `imported`."""
    dense, sparse = make_run(tmp_path / "runs/dense"), prune(tmp_path / "runs/deep/sparse")
    write_json(dense / "test_beam_2/scores.json", {"CIDEr": 0.5, "Bleu_4": None, "text": TEXT})
    write_json(sparse / "test_beam_2/scores.json", {"CIDEr": 0.45, "METEOR": 0.3, "text": TEXT})
    write_json(sparse / "val_beam_5/scores.json", {"CIDEr": 0.4})
    summary = {"step": 9, "best_step": 6, "validation": {"CIDEr": 0.375, "loss": 2.0}}
    write_json(dense / "summary.json", summary)
    rows = ["step,caption_loss,sparsity,images_per_second", "3,4.0,0.25,90", "6,3.0,0.5,100"]
    (sparse / "train.csv").write_text("\n".join([*rows, "9,2.0,0.75,400", ""]))
    rows = "step,embed/embedding,logit_0/kernel\n3,0.1,0.2\n9,0.8,0.7\n"
    (sparse / "sparsity.csv").write_text(rows)
    save_model(tmp_path / "runs/deep/file.scap", load_run(make_run(tmp_path / "other")))
    write_json(tmp_path / "runs/deep/file.scap_test_greedy/scores.json", {"CIDEr": 0.125})
    unfinished = tmp_path / "runs/unfinished"
    shutil.copytree(sparse, unfinished)
    (unfinished / "model.scap").unlink()
    shutil.rmtree(unfinished / "test_beam_2")
    shutil.rmtree(unfinished / "val_beam_5")
    (unfinished / "validation.csv").write_text("step,CIDEr,loss\n4,0.25,2.0\n8,0.125,1.0\n")
    shutil.copytree(sparse, tmp_path / "runs/imported")
    published = {"test_beam_2": {"0009": {"CIDEr": 0.875}}, "val_beam_1": {}}
    published["val_beam_1"] = {"0006": {"CIDEr": 0.75}, "0009": {"CIDEr": 0.625}}
    write_json(tmp_path / "runs/imported/imported.json", {"scores": published})
    shutil.rmtree(tmp_path / "runs/imported/val_beam_5")
    return tmp_path / "runs"


def test_one_table_of_runs_of_all_kinds(runs, tmp_path):
    lines = []
    report_runs([runs], tmp_path / "out", published=True, report=lines.append)
    table = {(row["run"], row["results"]): row for row in read_csv(tmp_path / "out/table.csv")}
    assert list(table) == [
        ("deep/sparse", "test_beam_2"),
        ("dense", "test_beam_2"),
        ("imported", "test_beam_2"),
        ("deep/file.scap", "test_greedy"),
        ("imported", "val_beam_1"),
        ("deep/sparse", "val_beam_5"),
        ("dense", "validation"),
        ("unfinished", "validation"),
    ]
    status = {name: row["status"] for (name, _), row in table.items()}
    assert status == {
        **{"deep/sparse": "finished", "dense": "finished", "imported": "imported"},
        **{"deep/file.scap": "model file", "unfinished": "unfinished, step 9"},
    }
    cider = [row["CIDEr"] for row in table.values()]
    # Of the import validation is that of the tested step, and our own test counts.
    assert cider == ["45.0", "50.0", "45.0", "12.5", "62.5", "40.0", "37.5", "25.0"]
    sparse, dense = table["deep/sparse", "test_beam_2"], table["dense", "validation"]
    run = load_run(runs / "deep/sparse")
    counts = weight_counts(run.params)
    assert (int(sparse["nonzeros"]), float(sparse["sparsity"])) == (
        counts["nonzeros"], pytest.approx(counts["sparsity"])
    )  # fmt: skip
    assert int(sparse["bytes"]) == (runs / "deep/sparse/model.scap").stat().st_size
    assert int(sparse["parameters"]) == sum(leaf.size for leaf in jax.tree.leaves(run.params))
    groups = ("embedding", "encoder", "decoder", "output")
    for column, total in (("nonzeros", "nonzeros"), ("parameters", "parameters")):
        assert sum(int(sparse[f"{g}_{column}"]) for g in groups) == int(sparse[total])
    words = run.params["embed"]["embedding"].shape[0]
    assert float(sparse["vocabulary_coverage"]) == pytest.approx(1700 / (words - 2), abs=1e-4)
    assert (sparse["novel"], sparse["reference_coverage"]) == ("75.0", "50.0")
    assert (sparse["words"], sparse["images_per_second"]) == ("8.5", "100.0")
    assert (sparse["METEOR"], dense["METEOR"], dense["method"]) == ("30.0", "", "dense")
    assert table["unfinished", "validation"]["sparsity"] == "0.75"  # the last one logged
    assert table["unfinished", "validation"]["nonzeros"] == ""
    markdown = (tmp_path / "out/table.md").read_text().splitlines()
    assert len(markdown) == 2 + len(table) and "| dense | test_beam_2 |" in markdown[3]
    assert (
        r"deep/sparse & finished & up\_down & supermask & test\_beam\_2 & 0.7"
        in (tmp_path / "out/table.tex").read_text()
    )
    charts = ("quality", "bubbles", "layerwise", "progression", "curves", "densities", "similarity")
    names = ", ".join(f"{name}.png" for name in charts)
    assert lines[-1] == f"wrote {names} to {tmp_path / 'out'}"
    for name in charts:
        with Image.open(tmp_path / f"out/{name}.png") as picture:
            assert picture.width > 300 and len(picture.convert("RGB").getcolors(10**6)) > 20
    assert lines[-4:-2] == [
        "charts of CIDEr show test_beam_2, without 2 runs: deep/file.scap, unfinished",
        "grey: published, of COCO's Karpathy test split",
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "karpathy", "dir": ""}, ""),
        ({"name": "karpathy", "dir": "data/COCO"}, ""),
        ({"name": "karpathy", "dir": "data/flickr30k"}, "karpathy (flickr30k)"),
        ({"name": "toy", "dir": ""}, "toy"),
        ({"name": "imagined", "dir": "data/flickr8k_coco"}, "imagined"),
        ({"name": "photos", "dir": "coco"}, "photos"),
        (5, ""),
    ],
)
def test_the_data_of_a_run_are_coco_s_or_named(tmp_path, data, expected):
    write_json(tmp_path / "config.json", {"model": {"name": "up_down"}, "data": data})
    assert read_run(tmp_path, "x").other_data == expected
    for name in ("mscoco_testing", "insta"):
        write_json(tmp_path / "config.json", {"caption_model": "up_down", "dataset": name})
        assert read_run(tmp_path, "x").other_data == {"insta": "insta"}.get(name, "")


def test_layers_and_masks_of_transformers(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES["relation_transformer"], "num_layers", 2)
    for seed in range(2):
        prune(tmp_path / f"runs/{seed}", "relation_transformer", seed)
    first, second = (read_run(tmp_path / f"runs/{seed}", str(seed)) for seed in range(2))
    assert first.masks.keys() == second.masks.keys()
    assert sorted(first.layers) == ["decoder", "encoder"]
    assert first.layers["encoder"].shape == (2, 2)
    kept = sum(np.unpackbits(bits).sum() for bits in first.masks.values())
    assert kept == first.figures["nonzeros"]
    lines = []
    report_runs([tmp_path / "runs"], tmp_path / "out", report=lines.append)
    assert lines[-1].startswith("wrote layerwise.png, densities.png, similarity.png to ")


def test_the_reference_s_results(shared, tmp_path):
    """Figures of its own files: `sparsities.csv`, `scores.csv`, the captions."""
    (path,) = (shared / "reference/checkpoint").glob("TINY3*.zip")
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    write_json(folder / "model_params.json", {"total": 30, "breakdown": {"embed.0.weight": 20}})
    captions = json.loads((folder / "test_beam_2/caption_00096000.json").read_text())
    (folder / "tokenizer/train_captions.txt").write_text(captions[0]["caption"] + "\n")
    report_runs([tmp_path / "runs"], tmp_path / "out", report=lambda line: None)
    test, validation = read_csv(tmp_path / "out/table.csv")
    texts = [entry["caption"] for entry in captions]
    words = [word for text in texts for word in text.split(" ")]
    assert test["CIDEr"] == "88.9" and validation["CIDEr"] == "83.5"  # of the tested step
    assert (test["results"], validation["results"]) == ("test_beam_2", "val_beam_1")
    assert (test["status"], test["model"], test["method"]) == ("reference", "up_down", "supermask")
    assert (test["sparsity"], test["nonzeros"], test["bytes"]) == ("0.975", "47264", "978639")
    assert (test["parameters"], test["embedding_parameters"]) == ("30", "20")
    assert float(test["words"]) == pytest.approx(len(words) / len(texts), abs=1e-4)
    assert float(test["vocabulary_coverage"]) == pytest.approx(len({*words}) / 29.98, abs=1e-4)
    assert float(test["novel"]) == pytest.approx(
        100 - 100 * texts.count(texts[0]) / len(texts), abs=1e-4
    )


def test_without_a_test_the_reference_s_best_validation_counts(tmp_path):
    folder = tmp_path / "run"
    write_json(folder / "config.json", {"caption_model": "relation_transformer"})
    (folder / "val_beam_1").mkdir()
    rows = "Step,Bleu_1,CIDEr\n0010,0.5,0.75\n0020,0.25,0.5\n"
    (folder / "val_beam_1/scores.csv").write_text(rows)
    (folder / "other").mkdir()
    (folder / "other/scores.csv").write_text("no scores\n")
    collected = read_run(folder, "x")
    assert collected.results == {"val_beam_1": {"Bleu_1": 50.0, "CIDEr": 75.0}}
    assert collected.figures["method"] == "dense"


def test_a_damaged_run_among_others_is_said_and_stays_in_the_table(runs, tmp_path):
    write_json(runs / "dense/test_beam_2/scores.json", {"CIDEr": "high"})
    (runs / "imported/config.json").write_text("{")
    lines = []
    report_runs([runs], tmp_path / "out", report=lines.append)
    faults = [line for line in lines if line.startswith("unreadable: ")]
    assert len(faults) == 2
    assert "test_beam_2/scores.json: CIDEr is 'high'; expected a number" in faults[0]
    rows = {row["run"]: row["status"] for row in read_csv(tmp_path / "out/table.csv")}
    assert rows["dense"] == rows["imported"] == "unreadable"
    with pytest.raises(CheckpointError, match=r"imported/config\.json: broken JSON"):
        report_runs([runs / "imported"], tmp_path / "out", report=lines.append)


def test_one_run_has_its_sparsity_report(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    report_runs([runs / "dense"], report=lines.append)
    folder = runs / "dense/sparsity"
    assert lines[-1] == f"wrote {folder}/tensors.csv and {folder}/report.png"
    assert not (tmp_path / "report").exists()
    report_runs([runs / "unfinished"], report=lines.append)  # which has none
    assert [row["run"] for row in read_csv(tmp_path / "report/table.csv")] == ["unfinished"]
    report_runs([runs / "dense"], tmp_path / "mine", report=lines.append)
    assert [row["run"] for row in read_csv(tmp_path / "mine/table.csv")] == ["dense", "dense"]


def test_a_captioner_of_the_package_goes_by_its_name(tmp_path, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "flickr8k-mini_test_beam_3/scores.json", {"CIDEr": 0.25})
    sources = ["flickr8k-mini", runs / "dense", runs / "dense"]
    report_runs(sources, "out", report=lambda line: None)
    rows = read_csv(tmp_path / "out/table.csv")
    assert [(row["run"], row["results"]) for row in rows] == [
        ("dense", "test_beam_2"), ("flickr8k-mini", "test_beam_3"), ("dense", "validation")
    ]  # fmt: skip
    assert rows[1]["CIDEr"] == "25.0" and f"{float(rows[1]['sparsity']):.3f}" == "0.950"


def test_runs_are_found_once(runs):
    (runs / "deep/link").symlink_to(runs / "dense")
    (runs / "deep/loop").symlink_to(runs)
    found = [path.relative_to(runs).as_posix() for path in find_runs(runs)]
    deep = ["deep/link", "deep/file.scap", "deep/sparse"]
    assert found == [*deep, "dense", "imported", "unfinished"]
    assert distinct_names(["/x/a/b", "/x/c"]) == ["a/b", "c"]
    assert distinct_names(["/x/a"]) == ["a"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonesuch", "nonesuch: no such file or folder; expected a run, or a captioner"),
        ("./nonesuch", "nonesuch: no such file or folder; expected a run"),
        ("empty", "empty: holds no run; expected config.json of a run, or runs in folders below"),
        ("notes.txt", "notes.txt: no model; expected a run, or a file *.scap"),
    ],
)
def test_what_is_no_run_is_one_clear_error(tmp_path, name, message):
    (tmp_path / "empty/deep").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("x")
    command = [sys.executable, str(REPO / "launch/report.py"), name]
    environment = {"PYTHONPATH": str(REPO), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("scores.csv", "Step,CIDEr\nx,0.5\n", r"scores\.csv: Step is 'x'; expected a number"),
        ("scores.csv", "Step,CIDEr\n1,high\n", r"scores\.csv: step 1: expected scores: could not"),
        ("scores.csv", "Step,CIDEr\n1,nan\n", r"scores\.csv: step 1: CIDEr is nan; expected"),
        ("../sparsities.csv", "sparsity\n0.5\n", r"sparsities\.csv: expected sparsity, nnz"),
        ("../model_params.json", '{"breakdown": 7}', r"model_params\.json: breakdown is 7"),
    ],
)
def test_damaged_results_of_the_reference_name_file_and_field(tmp_path, file, content, message):
    write_json(tmp_path / "config.json", {"caption_model": "up_down_lstm"})
    (tmp_path / "test_beam_2").mkdir()
    (tmp_path / "test_beam_2" / file).write_text(content)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path, "x")


@pytest.mark.parametrize("content", ["[1]", '{"scores": [1]}', '{"scores": {"test_x": {"1": 2}}}'])
def test_damaged_scores_of_an_import_name_the_file(runs, content):
    (runs / "imported/imported.json").write_text(content)
    with pytest.raises(DataError, match=r"imported\.json: scores: expected those of each"):
        read_run(runs / "imported", "x")


def test_charts_show_the_results_that_most_runs_have(runs):
    found = [read_run(run, run.name) for run in find_runs(runs)]
    assert common_results(found) == "test_beam_2"
    for run in found:
        run.results.pop("test_beam_2", None)
    assert common_results(found) == "validation"
    assert common_results(found, "SPICE") is None

"""The published sparse checkpoint on five real COCO images: exactly the reference's captions."""

import json
import pathlib
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.caption import caption_folder
from sparsecap_jax.commands.convert import import_reference
from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.commands.report import report_run
from sparsecap_jax.data.batches import pad_regions
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.decoding import DecodeOptions, decode
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.evaluation.metrics import score_captions
from sparsecap_jax.model_files import ModelFile

ZIP = "reference/checkpoint/TINY3_UpDownLSTM__supermask__0.975__wg_120.0.zip"
ATOL = 1e-4
SEARCHES = {
    "greedy": {"method": "greedy"},
    "greedy_constraint": {"method": "greedy", "no_repeat": True},
    "beam2": {"beam_size": 2},
    "beam3": {"beam_size": 3},
    "beam5": {"beam_size": 5},
    "beam5_wu0.7": {"beam_size": 5, "length_penalty": "wu_0.7"},
    "beam5_avg0": {"beam_size": 5, "length_penalty": "avg_0"},
}
LINES = []


@pytest.fixture(scope="module")
def workdir(shared, tmp_path_factory):
    directory = tmp_path_factory.mktemp("published") / "run"
    import_reference(shared / ZIP, directory, LINES.append)
    return directory


@pytest.fixture(scope="module")
def captioner(workdir):
    return Captioner.load(workdir)


@pytest.fixture(scope="module")
def figures(golden):
    return golden("checkpoint/tiny3_xe.npz")


@pytest.fixture(scope="module")
def regions(shared, figures):
    store = NpyFolderStore(shared / "reference/coco5")
    return pad_regions([store[int(i)] for i in figures["image_ids"]], 5, 47)


def test_import_keeps_the_published_nonzeros(workdir, shared):
    assert "47,264 nonzero weights, sparsity 0.9750" in LINES[0]
    contents = json.loads((shared / "reference/checkpoint/tiny3_xe_contents.json").read_text())
    assert contents["total_nnz_pruned_tensors"] == 47264
    # Lossless, along with the tokenizer; the published file of the weights has 978,639 bytes.
    size = (workdir / "model.scap").stat().st_size
    with ModelFile(workdir / "model.scap") as file:
        size -= sum(len(zlib.compress(content, 9)) for content in file.files().values())
    assert size < 0.21 * 978_639


def test_the_import_can_be_one_file(workdir, shared, tmp_path):
    import_reference(shared / ZIP, tmp_path / "tiny.scap", [].append)
    assert (tmp_path / "tiny.scap").read_bytes() == (workdir / "model.scap").read_bytes()
    with pytest.raises(ConfigError, match=r"weights is 'npz'; .*x\.scap can be one of float32"):
        import_reference(shared / ZIP, tmp_path / "x.scap", [].append, weights="npz")


def test_the_import_notes_training_settings_and_published_scores(workdir, shared):
    note = json.loads((workdir / "imported.json").read_text())
    assert note["weights"] == "model_best_pruned_sparse.pth"
    assert note["config"]["learning_rate"] == 0.01 and note["config"]["max_epochs"] == 15
    published = shared / "data/published_test_captions/up_down_tiny_97.5_scores.json"
    assert note["scores"]["test_beam_2"] == {"00096000": json.loads(published.read_text())}
    assert len(note["scores"]["val_beam_1"]) == 19
    sizes = json.loads((workdir / "params.json").read_text())
    assert sizes["(all)"]["nonzeros"] == 47264 + 1896313 - 1890528


def test_the_import_is_scored_on_a_dataset_that_is_named(workdir, shared, tmp_path):
    changes = [f"data.dir={shared / 'reference/coco5'}"]
    options = {"changes": changes, "tokenizer": "python", "report": LINES.append}
    metrics = {"metrics": ["Bleu_1", "ROUGE_L"], "output": tmp_path}
    scores = evaluate_run(workdir, split="test", **metrics, **options)  # two beams, as published
    (entry,) = json.loads((tmp_path / "captions.json").read_text())
    assert entry["caption"] == "a man riding a motorcycle on a dirt"
    split = json.loads((shared / "reference/coco5/dataset_coco_testing.json").read_text())
    (image,) = (image for image in split["images"] if image["split"] == "test")
    references = {391895: [sentence["raw"] for sentence in image["sentences"]]}
    expected = score_captions(
        {391895: entry["caption"]}, references, ["Bleu_1", "ROUGE_L"], "python"
    )
    assert scores.items() >= expected.items()
    report_run(workdir, LINES.append)
    assert LINES[-3].split()[:6] == ["97.5000%", "sparse", "47,264", "of", "1,890,528", "kept"]


def test_teacher_forcing_and_features(captioner, figures, regions):
    run = captioner.run
    tokens, mask = figures["tf_seqs"], figures["tf_masks"] > 0
    ours = run.model.apply({"params": run.params}, regions, tokens[:, None])[:, 0]
    np.testing.assert_allclose(ours[mask], figures["tf_logprobs"][mask], atol=ATOL)
    context = run.model.apply({"params": run.params}, regions, method="encode")
    for ours, theirs in (("fc", "prep_fc"), ("regions", "prep_att"), ("keys", "prep_p_att")):
        np.testing.assert_allclose(context[ours], figures[theirs], atol=ATOL)


def test_hidden_states(captioner, figures, regions):
    run = captioner.run
    variables = {"params": run.params}

    @jax.jit
    def states(tokens):
        context = run.model.apply(variables, regions, method="encode")
        carry = run.model.apply(variables, context, 1, method="init_carry")

        def body(carry, token):
            carry, _ = run.model.apply(variables, carry, token, context, method="step")
            return carry, (carry["h_att"][:, 0], carry["h_lang"][:, 0])

        return jax.lax.scan(body, carry, tokens)[1]

    h_att, h_lang = states(figures["tf_seqs"].T[..., None])
    np.testing.assert_allclose(h_att, figures["tf_hidden"][:, 0], atol=ATOL)
    np.testing.assert_allclose(h_lang, figures["tf_hidden"][:, 1], atol=ATOL)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_finds_the_references_captions(captioner, figures, regions, name):
    options = DecodeOptions(max_length=16, **SEARCHES[name])
    found = decode(captioner.run.model, captioner.run.params, regions, options)
    theirs = figures[f"{name}__seq"]
    np.testing.assert_array_equal(found.tokens, theirs)
    real = theirs != 0
    np.testing.assert_allclose(
        found.log_probs[real], figures[f"{name}__seq_logprobs"][real], atol=ATOL
    )
    if f"{name}__p" in figures:
        np.testing.assert_allclose(found.scores, figures[f"{name}__p"], atol=ATOL)


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_the_command_writes_the_references_captions(workdir, shared, tmp_path, figures, beams):
    name = "greedy" if beams == 1 else f"beam{beams}"
    features, output = shared / "reference/coco5/bu", tmp_path / "captions.json"
    found = caption_folder(workdir, features, output, beam_size=beams, report=LINES.append)
    assert json.loads(output.read_text()) == found
    texts = json.loads((shared / "reference/checkpoint/tiny3_xe_captions.json").read_text())
    expected = zip(texts["image_ids"], texts["decodes"][name], strict=True)
    assert {entry["image_id"]: entry["caption"] for entry in found} == {
        image_id: beams[0] for image_id, beams in expected
    }
    sums = dict(zip(figures["image_ids"].tolist(), figures[f"{name}__seq"][:, 0], strict=True))
    log_probs = dict(zip(sums, figures[f"{name}__seq_logprobs"][:, 0], strict=True))
    for entry in found:
        real = sums[entry["image_id"]] != 0
        total = log_probs[entry["image_id"]][real].sum()
        assert entry["log_prob"] == pytest.approx(total, abs=ATOL)


def test_one_image_at_a_time_gives_the_same_caption(captioner, shared):
    features = np.load(shared / "reference/coco5/bu/cocobu_att/391895.npy")
    fc = np.load(shared / "reference/coco5/bu/cocobu_fc/391895.npy")
    caption = captioner.caption(features, fc=fc, beam_size=2)
    assert caption.text == "a man riding a motorcycle on a dirt"  # as published


def test_bad_input_is_one_clear_error(captioner, workdir, shared, tmp_path):
    with pytest.raises(DataError, match="features"):
        captioner.caption(np.zeros((3, 7), np.float32))
    with pytest.raises(CheckpointError, match="exists; expected a new or empty folder"):
        import_reference(shared / ZIP, workdir, LINES.append)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Captioner.load(tmp_path)
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    with pytest.raises(DataError, match=r"word\.model"):
        Captioner.load(tmp_path)


def test_command_lines_convert_and_caption(shared, tmp_path):
    repo = pathlib.Path(__file__).parents[2]
    commands = (
        [
            "convert",
            "--source=reference",
            f"--input={shared / ZIP}",
            f"--output={tmp_path / 'run'}",
        ],
        [
            *("caption", f"--checkpoint={tmp_path / 'run'}", "--beam_size=2"),
            *(f"--features={shared / 'reference/coco5/bu'}", f"--output={tmp_path / 'c.json'}"),
        ],
    )
    for script, *flags in commands:
        command = [sys.executable, f"launch/{script}.py", *flags]
        subprocess.run(command, cwd=repo, check=True, capture_output=True)
    captions = {e["image_id"]: e["caption"] for e in json.loads((tmp_path / "c.json").read_text())}
    assert captions[391895] == "a man riding a motorcycle on a dirt"

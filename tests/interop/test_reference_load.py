"""The reference itself loads what we export, with strict=True, and computes what we compute.

pytest tests/interop/test_reference_load.py --reference=CHECKOUT --reference_python=PYTHON
"""

import json
import pathlib
import subprocess

import export_cases as ec
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecap_jax.commands.convert import import_reference
from sparsecap_jax.commands.reference_export import export_reference
from sparsecap_jax.data.batches import pad_regions
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.decoding import DecodeOptions, decode
from sparsecap_jax.interop.checkpoint_dir import open_checkpoint_dir
from sparsecap_jax.interop.reference import MASK_SUFFIX
from sparsecap_jax.interop.torch_prune import to_torch_prune
from sparsecap_jax.torch_files import save_torch_file
from sparsecap_jax.types import Regions

ATOL = 2e-5  # of log-probs
VARIANTS = {
    "dense": {},
    "sparse": {"form": "sparse"},
    "binary": {"masks": "binary"},
    "binary_sparse": {"masks": "binary", "form": "sparse"},
    "raw": {"masks": "raw"},
    "torch_prune": {"masks": "raw"},  # its masks rounded, for torch to apply
}
PUBLISHED = "reference/checkpoint/TINY3_UpDownLSTM__supermask__0.975__wg_120.0.zip"
MASKED_CLASS = ("binary", "binary_sparse", "raw")
CASES = [
    (name, variant)
    for name, (_, _, pruner, _) in ec.FAMILIES.items()
    for variant in VARIANTS
    if variant == "dense"
    or (pruner != "none" and (variant == "sparse" or not name.startswith("acort")))
]


@pytest.fixture(scope="module")
def reference(request):
    """The checkout and the Python given on the command line."""
    options = [request.config.getoption(name) for name in ("--reference", "--reference_python")]
    if None in options:
        pytest.skip("no checkout of the PyTorch reference (--reference, --reference_python)")
    return options


def draw_inputs(run):
    """Two images of 5 and 3 regions, three captions each; tokens avoid PAD and the ends."""
    rng = np.random.default_rng(5)
    length, vocab = 7, run.model.vocab_size
    features = rng.standard_normal((2, 5, ec.FEATURES), np.float32)
    mask = np.arange(5) < np.array([[5], [3]])
    features[~mask] = 0
    corners = rng.random((2, 5, 2), np.float32) / 2
    boxes = np.concatenate([corners, corners + rng.random((2, 5, 2), np.float32) / 2], axis=-1)
    boxes[~mask] = 0
    fc = features.sum(1) / mask.sum(1, keepdims=True).astype(np.float32)
    tokens = rng.integers(4, vocab, (2, 3, length)).astype(np.int32)
    return Regions(features, mask, boxes, fc), tokens


@pytest.fixture(scope="module")
def loaded(reference, tmp_path_factory):
    """`{(name, variant): (run, regions, tokens, what the reference said, its arrays)}`."""
    root = tmp_path_factory.mktemp("reference_load")
    runs, folders = {}, {}
    for name, variant in CASES:
        if name not in runs:
            run = ec.drawn_run(root / "runs" / name, name)
            runs[name] = run, *draw_inputs(run)
        _, regions, tokens = runs[name]
        folder = folders[name, variant] = root / f"{name}-{variant}"
        export_reference(root / "runs" / name, folder, **VARIANTS[variant])
        if variant == "torch_prune":
            _write_torch_prune(folder)
        write_inputs(folder, regions, tokens, np.ones(tokens.shape, bool))
    lines = run_reference(reference, folders.values())
    return {
        case: (*runs[case[0]], line, dict(np.load(folder / "theirs.npz")))
        for (case, folder), line in zip(folders.items(), lines, strict=True)
    }


def _write_torch_prune(folder):
    state = open_checkpoint_dir(folder).state_dict
    masks = {k: np.float32(v > 0) for k, v in state.items() if k.endswith(MASK_SUFFIX)}
    save_torch_file(folder / "torch_prune.pth", to_torch_prune({**state, **masks}))


def write_inputs(folder, regions, tokens, token_mask):
    """What the reference's models are called with; tokens `[B, S, T]`."""
    rows = (-1, tokens.shape[-1])
    np.savez(
        folder / "inputs.npz",
        att_feats=regions.features,
        att_masks=np.float32(regions.mask),
        fc_feats=regions.fc,
        boxes=regions.boxes,
        seqs=tokens.reshape(rows),
        masks=np.float32(token_mask).reshape(rows),
    )


def run_reference(reference, folders):
    """What `reference_load.py` says about each folder."""
    checkout, python = reference
    script = pathlib.Path(__file__).with_name("reference_load.py")
    command = [python, str(script), checkout, *map(str, folders)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("name, variant", CASES)
def test_the_reference_computes_the_same(loaded, name, variant):
    run, regions, tokens, line, theirs = loaded[name, variant]
    masked_class = variant in MASKED_CLASS
    assert line["class"].endswith("_prune") == masked_class
    ours = run.model.apply({"params": run.params}, regions, jnp.asarray(tokens))
    steps = tokens.shape[-1] - 1  # the reference's transformers drop the last token
    expected = theirs["log_probs"].reshape(*tokens.shape[:2], -1, run.model.vocab_size)
    difference = np.abs(ours[:, :, :steps] - expected[:, :, :steps]).max()
    print(f"{name} {variant}: {line['tensors']} tensors, log-probs within {difference:.1e}")
    assert difference <= ATOL
    # The reference's own decoding is wrong with shared layers, and with a masked ORT.
    if "acort" in name or (masked_class and "ort" in name):
        return
    options = DecodeOptions(method="greedy", max_length=run.config.max_seq_length)
    found = decode(run.model, run.params, regions, options).tokens[:, 0]
    assert line["captions"] == [run.tokenizer.decode(row) for row in np.asarray(found)]


def test_the_published_model_captions_photos(reference, shared, golden, tmp_path):
    import_reference(shared / PUBLISHED, tmp_path / "run", print)
    export_reference(tmp_path / "run", tmp_path / "out", form="sparse")
    figures = golden("checkpoint/tiny3_xe.npz")
    store = NpyFolderStore(shared / "reference/coco5")
    regions = pad_regions([store[int(i)] for i in figures["image_ids"]], 5, 47)
    mask = figures["tf_masks"] > 0
    write_inputs(tmp_path / "out", regions, figures["tf_seqs"][:, None], mask)
    (line,) = run_reference(reference, [tmp_path / "out"])
    theirs = np.load(tmp_path / "out/theirs.npz")["log_probs"]
    np.testing.assert_allclose(theirs[mask], figures["tf_logprobs"][mask], atol=1e-4)
    texts = json.loads((shared / "reference/checkpoint/tiny3_xe_captions.json").read_text())
    assert line["captions"] == [beams[0] for beams in texts["decodes"]["greedy"]]

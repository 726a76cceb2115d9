"""Which curves of training are drawn."""

from PIL import Image

from sparsecap_jax.evaluation.plots import logged_curves, training_curves


def write_run(folder, train, validation="step,CIDEr\n5,1.5\n"):
    folder.mkdir()
    (folder / "train.csv").write_text(train)
    (folder / "validation.csv").write_text(validation)
    return folder


def drawn(tmp_path, runs):
    tables = {
        (name, table): tmp_path / name / f"{table}.csv"
        for name in runs
        for table in ("train", "validation")
    }
    return [column for _, column, _ in logged_curves(tables, runs)]


def test_what_no_run_has_is_left_out(tmp_path):
    write_run(tmp_path / "dense", "step,caption_loss,reward\n1,3.0,\n2,2.0,\n")
    write_run(tmp_path / "sparse", "step,caption_loss,sparsity\n1,3.0,0.5\n")
    write_run(tmp_path / "scst", "step,caption_loss,reward,entropy\n1,-0.1,1.0,0.5\n")
    assert drawn(tmp_path, ["dense"]) == ["caption_loss", "CIDEr"]
    assert drawn(tmp_path, ["dense", "sparse"]) == ["caption_loss", "CIDEr", "sparsity"]
    assert drawn(tmp_path, ["scst"]) == ["caption_loss", "CIDEr", "reward", "entropy"]
    write_run(tmp_path / "none", "step,caption_loss\n", "step,CIDEr\n")
    assert drawn(tmp_path, ["none"]) == []


def test_pictures_are_as_large_as_what_they_show(tmp_path):
    sizes = {}
    write_run(tmp_path / "dense", "step,caption_loss\n1,3.0\n")
    write_run(tmp_path / "scst", "step,caption_loss,reward,entropy\n1,-0.1,1.0,0.5\n")
    write_run(tmp_path / "none", "step,caption_loss\n", "step,CIDEr\n")
    for name in ("dense", "scst", "none"):
        training_curves(tmp_path / f"{name}.png", {name: tmp_path / name})
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes[name] = picture.size
    (width, height), scst, none = sizes.values()
    assert scst[1] == 2 * height  # four curves, three to a row
    assert abs(scst[0] - 1.5 * width) <= 1
    assert abs(none[0] - 0.5 * width) <= 1

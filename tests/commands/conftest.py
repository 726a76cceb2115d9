"""Pages of the explorer in headless Chromium; a package of one captioner; a dataset."""

import chromium
import pytest
from captioner_runs import make_run, write_features
from evaluate_cases import COUNT, TEXTS
from explorer_driver import HOSTILE, texts, until
from explorer_files import make_results, make_runs
from PIL import Image

from sparsecap_jax.commands.explorer import write_explorer
from sparsecap_jax.files import write_json
from sparsecap_jax.runs import published


@pytest.fixture(scope="module")
def driver():
    with chromium.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page with pictures in it, one of HTML and odd texts, and one that links pictures."""
    folder = tmp_path_factory.mktemp("pages")
    runs = make_runs(folder)
    write_json(folder / "groups.json", {str(n): "odd" if n % 2 else "even" for n in range(1, 12)})
    write_explorer(runs, folder / "plain.html", groups=folder / "groups.json")
    write_explorer(runs, folder / "linked.html", link_images=True)
    (folder / "few").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (40, 20)).save(folder / f"few/{number}.png")
    make_results(runs[0], "first", "test", changes={1: HOSTILE, 2: "", 3: "红球 a"})
    write_explorer(runs, folder / "odd.html", images=folder / "few", title=HOSTILE)
    return folder


@pytest.fixture
def page(driver, pages):
    """A function that opens a page, by default the plain one; no error may have been logged."""

    def opened(name="plain", **address):
        driver.get("about:blank")
        driver.get(chromium.url(pages / f"{name}.html", **address))
        until(driver, lambda: texts(driver, ".card h2"))
        return driver

    yield opened
    chromium.emulate(driver)
    assert driver.get_log("browser") == []
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0 or (
        "linked" in driver.current_url
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one captioner, `tiny`, and an empty working folder."""
    folder = tmp_path / "package"
    make_run(folder / "tiny")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(published, "_FOLDER", folder)
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.fixture
def coco(tmp_path):
    """A dataset whose test split has three images; runs of `make_run` do not know where it is."""
    folder = tmp_path / "coco"
    write_features(folder / "bu", COUNT)
    images = [
        {
            "cocoid": 100 + number,
            "filename": f"{100 + number}.jpg",
            "split": "test",
            "sentences": [{"raw": text, "tokens": text.split()}],
        }
        for number, text in enumerate(TEXTS)
    ]
    write_json(folder / "dataset_coco.json", {"dataset": "coco", "images": images})
    return folder

"""The whole page in headless Chromium: photos, words, faults, no network."""

import json

import chromium
import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.errors import DataError
from sparsecap_jax.exporting.web import _service_worker, site_files
from sparsecap_jax.exporting.web_runtime import runtime_files
from sparsecap_jax.photos.images import EXAMPLES, open_photo, squeeze

pytest.importorskip("onnx")
pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
NAME = "flickr8k-mini"
SAID = "a black and white dog is laying on a bed"  # of a cat; see tests/photos/test_examples.py
PIXELS = """
const [name, size] = arguments;
const done = arguments[arguments.length - 1];
(async () => {
  const { readPixels, squeeze } = await import(new URL("photo.js", location.href));
  const { pixels, width, height } = await readPixels(await (await fetch(name)).blob());
  return { width, height, pixels: [...pixels], square: [...squeeze(pixels, width, height, size)] };
})().then(done, (error) => done(String(error.stack ?? error)));
"""
REACH = """
const done = arguments[arguments.length - 1];
const code = `fetch(${JSON.stringify(arguments[0])}, { mode: "no-cors" }).then(
  () => "sent", () => "refused")`;
const worker = new Worker(URL.createObjectURL(new Blob([`${code}.then(postMessage)`])));
Promise.all([
  fetch(arguments[0], { mode: "no-cors" }).then(() => "sent", () => "refused"),
  new Promise((told) => { worker.onmessage = ({ data }) => told(data); }),
]).then(done);
"""
# Whether the files of another export wait, and the number of exports whose files are kept.
WAITING = """
const [done] = arguments;
Promise.all([navigator.serviceWorker.getRegistration(), caches.keys()]).then(([kept, names]) =>
  done([Boolean(kept.waiting), names.length]));
"""


@pytest.fixture(scope="module")
def files():
    try:
        runtime_files(report=lambda _: None)
    except DataError as error:
        pytest.skip(f"onnxruntime-web: {error}")
    return site_files(NAME, report=lambda _: None)


def write(folder, files):
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def driver():
    with chromium.browser() as opened:
        opened.set_script_timeout(30)
        yield opened


@pytest.fixture(scope="module")
def site(files, tmp_path_factory):
    """The address of the page, and its folder."""
    from web_pages import served

    folder = write(tmp_path_factory.mktemp("site"), files)
    with served(folder) as address:
        yield address, folder


@pytest.fixture
def page(driver, site):
    """The page, ready."""
    driver.get("about:blank")
    driver.get(site[0])
    ready(driver)
    yield driver
    chromium.emulate(driver)


def ready(driver):
    from web_pages import text, until

    until(driver, lambda: text(driver, "state") == "Ready, also offline")


def caption(driver):
    from web_pages import text, until

    until(driver, lambda: driver.find_element("id", "caption").is_displayed())
    return text(driver, "caption")


def words(driver):
    return driver.find_elements("css selector", "#caption button")


def test_an_example_has_the_caption_of_the_command(page):
    from web_pages import text, until

    page.find_element("css selector", "#examples button").click()
    assert caption(page) == SAID
    assert text(page, "announced") == f"Caption: {SAID}"
    assert page.find_element("id", "photo").get_attribute("alt") == SAID
    assert text(page, "size") == "0.44 MB" and text(page, "sparsity") == "95.0%"
    assert text(page, "seeing").endswith("s") and text(page, "writing").endswith("s")
    until(page, lambda: not page.find_elements("css selector", "#caption .new"))
    assert page.get_log("browser") == []


def test_words_light_up_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys
    from web_pages import text, until

    page.find_element("css selector", "#examples button").click()
    caption(page)
    first, second = words(page)[:2]
    assert [one.get_attribute("tabindex") for one in words(page)].count("0") == 1
    page.execute_script("arguments[0].focus()", first)
    first.send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element == second
    assert second.get_attribute("class") == "on"
    told = second.get_attribute("aria-description")
    assert text(page, "where") == f"“black”: {told}" and told.startswith("most weight on ")
    light = "return document.getElementById('light').getContext('2d').getImageData(0,0,32,32).data"
    until(page, lambda: max(page.execute_script(light)[3::4]) > 40)
    second.send_keys(Keys.END)
    assert page.switch_to.active_element == words(page)[-1]


def test_a_file_that_is_no_picture_is_named_and_the_next_one_works(page, tmp_path):
    from web_pages import text, until

    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    chosen = page.find_element("id", "file")
    chosen.send_keys(str(tmp_path / "broken.jpg"))
    until(page, lambda: text(page, "message").startswith("This file cannot be described: "))
    chosen.send_keys(str(EXAMPLES / "cat.jpg"))
    assert caption(page) == SAID


def test_photos_are_read_and_squeezed_as_in_python(page, site, tmp_path):
    """JPEG, turned by its EXIF; transparent PNG on white; sizes below and above the square."""
    cat = Image.open(EXAMPLES / "cat.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (37, 501, 3), np.uint8))
    glass = noise.convert("RGBA")
    glass.putalpha(Image.fromarray(rng.integers(0, 2, (37, 501), np.uint8) * 255))
    noise.save(site[1] / "noise.png")
    glass.save(site[1] / "glass.png")
    cat.save(site[1] / "turned.jpg", exif=exif, quality=90)
    cat.resize((60, 45)).save(site[1] / "small.webp", lossless=True)
    for name, most in (("noise.png", 0), ("glass.png", 0), ("turned.jpg", 2), ("small.webp", 0)):
        photo = open_photo(site[1] / name)
        found = page.execute_async_script(PIXELS, name, 320)
        assert isinstance(found, dict), found
        assert [found["width"], found["height"]] == [*photo.size], name
        pixels = np.array(found["pixels"]).reshape(*photo.size[::-1], 4)[..., :3]
        assert np.abs(pixels - np.asarray(photo)).max() <= most, name
        square = np.array(found["square"]).reshape(320, 320, 3)
        assert np.abs(square - squeeze(photo, 320)).max() <= most, name


def test_it_works_offline_after_the_first_visit(driver, files, tmp_path):
    from web_pages import served

    with served(write(tmp_path, files)) as address:
        driver.get(address)
        ready(driver)
    driver.get("about:blank")
    driver.get(address)
    ready(driver)
    driver.find_element("css selector", "#examples button").click()
    assert caption(driver) == SAID


def test_a_newer_export_waits_for_pages_that_are_open(driver, files, tmp_path):
    """Files of two exports are never mixed: the old ones serve all pages until one is left."""
    from web_pages import served, text, until

    named = b'"name":"%s"'
    newer = {name: content for name, content in files.items() if name != "sw.js"}
    newer["site.json"] = newer["site.json"].replace(named % NAME.encode(), named % b"newer")
    newer["sw.js"] = _service_worker(newer)
    first = driver.current_window_handle
    with served(write(tmp_path, files)) as address:
        driver.get(address)
        ready(driver)
        driver.switch_to.new_window("tab")
        driver.get(address)
        ready(driver)
        write(tmp_path, newer)
        driver.refresh()
        ready(driver)
        until(driver, lambda: driver.execute_async_script(WAITING) == [True, 2])
        driver.refresh()
        ready(driver)
        assert f"captioner {NAME}" in text(driver, "files")
        assert driver.execute_async_script(WAITING) == [True, 2]
        driver.close()
        driver.switch_to.window(first)
        driver.refresh()
        ready(driver)
        until(driver, lambda: driver.execute_async_script(WAITING) == [False, 1])
        driver.refresh()
        ready(driver)
        until(driver, lambda: "captioner newer" in text(driver, "files"))


def test_a_script_that_is_missing_is_said(driver, files, tmp_path):
    from web_pages import served, text, until

    write(tmp_path, files)
    (tmp_path / "runtime.js").unlink()
    with served(tmp_path) as address:
        driver.get(address)
        until(driver, lambda: text(driver, "state") == "Cannot start")
        assert text(driver, "message") == "The models cannot be loaded: a script did not load"


def test_nothing_leaves_the_origin(page, site, tmp_path):
    from web_pages import served

    page.find_element("css selector", "#examples button").click()
    caption(page)
    names = "return performance.getEntriesByType('resource').map(({ name }) => name)"
    assert all(name.startswith((site[0], "blob:")) for name in page.execute_script(names))
    (tmp_path / "file.txt").write_text("elsewhere")
    with served(tmp_path) as elsewhere:
        assert page.execute_async_script(REACH, f"{elsewhere}file.txt") == ["refused", "refused"]
    assert any("Content Security Policy" in one["message"] for one in page.get_log("browser"))


def test_text_from_outside_is_text(driver, files, tmp_path):
    """Words, and names of the captioner and its matrices, with markup in them."""
    import zlib

    from web_pages import served, text, until

    hostile = '<img src=x onerror="window.hurt=1">'
    content = zlib.decompress(files["captioner.bin"])
    size = int.from_bytes(content[:4], "little")
    header = json.loads(content[4 : 4 + size])
    header["tokenizer"]["pieces"] = [f" {hostile}"] * header["model"]["vocab_size"]
    head = json.dumps(header).encode()
    coded = zlib.compress(len(head).to_bytes(4, "little") + head + content[4 + size :])
    about = json.loads(files["site.json"])
    about |= {"name": hostile, "extractor": hostile}
    about["tensors"][0]["name"] = hostile
    changed = {"captioner.bin": coded, "site.json": json.dumps(about).encode()}
    with served(write(tmp_path, files | changed)) as address:
        driver.get(address)
        ready(driver)
        driver.find_element("css selector", "#examples button").click()
        assert caption(driver).count(hostile) > 3
        until(driver, lambda: hostile in text(driver, "files"))
        assert hostile in text(driver, "tensors")
        assert driver.execute_script("return window.hurt ?? null") is None
        assert not driver.find_elements("css selector", "main img[src=x], details img")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_fits_the_screen(page, width, dark):
    chromium.emulate(page, width, 844, dark)
    page.find_element("css selector", "#examples button").click()
    caption(page)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    colour = page.execute_script(
        "return getComputedStyle(document.documentElement).backgroundColor"
    )
    assert (sum(map(int, colour[4:-1].split(","))) < 200) == dark
    bottom = page.execute_script(
        "return document.getElementById('caption').getBoundingClientRect().bottom"
    )
    assert bottom < 844

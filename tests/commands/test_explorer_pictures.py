"""The explorer in headless Chromium: pictures, attention, small screens, colours, readers."""

import chromium
import pytest
from explorer_driver import card, elements, inside, shown, texts, until
from explorer_files import make_runs
from PIL import Image

from sparsecap_jax.commands.explorer import write_explorer
from sparsecap_jax.files import write_json

pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())


def lit(one):
    """What shows a word's attention: the word, the text, the framed box, light of the regions."""
    (frame,) = one.find_elements("css selector", ".most")
    places = [float(frame.get_attribute(name)) for name in ("x", "y", "width", "height")]
    holes = one.find_elements("css selector", "mask rect")[1:]
    light = [float(hole.get_attribute("fill-opacity")) for hole in holes]
    return inside(one, ".on"), inside(one, ".attended"), places, light


def test_attention_by_pointer(page):
    from selenium.webdriver import ActionChains

    driver = page()
    one = card(driver, 3)
    until(driver, lambda: len(one.find_elements("css selector", ".walk")) == 2)
    assert len(one.find_elements("css selector", ".box")) == 2
    words = one.find_elements("css selector", ".model-0 .word")
    ActionChains(driver).move_to_element(words[1]).perform()
    word, text, places, light = lit(one)
    assert (word, text) == (["red"], ["red: 60% region 2, 40% region 1"])
    assert places == pytest.approx([0.25, 0.5, 0.25, 0.25], abs=1e-4)
    assert light == pytest.approx([2 / 3, 1], abs=0.006)
    assert inside(one, ".share") == ["60%"]
    words = one.find_elements("css selector", ".model-1 .word")
    ActionChains(driver).move_to_element(words[3]).perform()
    word, text, places, _ = lit(one)
    assert (word, text) == (["3"], ["3: 81% region 1, 19% region 2"])
    assert places == pytest.approx([0, 0, 0.5, 1], abs=1e-4)
    ActionChains(driver).move_to_element(one.find_element("css selector", "h2")).perform()
    assert inside(one, ".on") == [] and inside(one, ".attended") == [""]
    assert len(one.find_elements("css selector", ".box")) == 2


def test_attention_by_keyboard(page):
    from selenium.webdriver import Keys

    driver = page()
    one = card(driver, 1)
    until(driver, lambda: len(one.find_elements("css selector", ".walk")) == 2)
    walk = one.find_element("css selector", ".model-1 .walk")
    one.find_element("css selector", ".model-0 .walk").send_keys(Keys.TAB)
    assert driver.switch_to.active_element == walk
    assert lit(one)[:2] == (["a"], ["a: 100% region 2"])
    walk.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert lit(one)[:2] == (["ball"], ["ball: 64% region 2, 36% region 1"])
    assert walk.get_attribute("aria-valuetext") == "ball: 64% region 2, 36% region 1"
    walk.send_keys(Keys.END, Keys.TAB)
    assert inside(one, ".on") == []


def test_regions_can_be_hidden(page):
    driver = page()
    box = card(driver, 1).find_element("css selector", ".box")
    assert box.is_displayed()
    driver.find_element("id", "boxes").click()
    assert not box.is_displayed()


def test_a_missing_picture_is_an_empty_frame_with_regions(page):
    driver = page("odd")
    one = card(driver, 4)
    assert one.find_elements("css selector", "img") == []
    assert len(one.find_elements("css selector", ".empty .box")) == 2


def test_linked_pictures_are_shown(page):
    driver = page("linked")
    picture = card(driver, 5).find_element("css selector", "img")
    until(driver, lambda: picture.get_property("naturalWidth") == 40)
    assert picture.get_attribute("src").endswith("/data/images/5.png")


def test_attention_without_boxes_is_bars(driver, tmp_path):
    runs = make_runs(tmp_path, boxes=False, pictures=False)
    write_explorer(runs, tmp_path / "page.html")
    driver.get(chromium.url(tmp_path / "page.html"))
    until(driver, lambda: shown(driver))
    one = elements(driver, ".card")[2]
    until(driver, lambda: one.find_elements("css selector", ".walk"))
    one.find_element("css selector", ".walk").send_keys(" ")
    bars = one.find_elements("css selector", ".bar")
    heights = [float(bar.get_attribute("height")) / 0.95 for bar in bars]
    assert heights == pytest.approx([0.9, 0.1], abs=0.004)


def test_an_image_of_which_nothing_can_be_drawn_has_no_frame(driver, tmp_path):
    write_json(tmp_path / "captions.json", [{"image_id": 1, "caption": "a cat"}])
    write_explorer([tmp_path / "captions.json"], tmp_path / "page.html")
    driver.get(chromium.url(tmp_path / "page.html"))
    until(driver, lambda: elements(driver, ".bare"))
    assert not driver.find_element("class name", "stage").is_displayed()
    assert texts(driver, ".references p") == ["none"]


def test_a_phone_has_no_sideways_scrolling(page):
    driver = page()
    chromium.emulate(driver, 360, 740)
    driver.refresh()
    until(driver, lambda: shown(driver))
    assert not driver.find_element("id", "controls").is_displayed()
    assert driver.execute_script("return document.documentElement.scrollWidth") == 360
    for summary in elements(driver, "summary"):
        summary.click()
    assert driver.execute_script("return document.documentElement.scrollWidth") == 360
    one = card(driver, 1)
    until(driver, lambda: len(one.find_elements("css selector", ".walk")) == 2)
    walk = one.find_elements("css selector", ".walk")[1]
    walk.send_keys(" ")
    chromium.emulate(driver, 360, 460)
    stage = one.find_element("css selector", ".stage")
    place = "arguments[0].scrollIntoView({block: 'end'});"
    place += "return Math.round(arguments[1].getBoundingClientRect().top)"
    until(driver, lambda: driver.execute_script(place, walk, stage) == 0)  # stays in view


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_light_and_dark(page, dark):
    driver = page()
    chromium.emulate(driver, dark=dark)
    card(driver, 1)
    pairs = [("#about", "html"), (".caption", "section"), ("mark", "mark"), (".better", "section")]
    pairs += [("dt", "section"), (".split", ".card"), ("button", "button"), ("label", "html")]
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    ratios = {}
    for text, back in pairs:
        colours = [driver.execute_script(script, text, "color")]
        colours.append(driver.execute_script(script, back, "backgroundColor"))
        ratios[text] = contrast(*colours)
    assert min(ratios.values()) >= 4.5, ratios  # WCAG 2.2, 1.4.3
    back = driver.execute_script(script, "html", "backgroundColor")
    assert (luminance(back) < 0.05) == dark


def luminance(colour):
    channels = [int(part) / 255 for part in colour.strip("rgb()").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(part * value for part, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first, second):
    dark, light = sorted([luminance(first), luminance(second)])
    return (light + 0.05) / (dark + 0.05)


def test_what_a_screen_reader_gets(page):
    driver = page()
    card(driver, 1)
    until(driver, lambda: elements(driver, ".walk"))
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = {
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in nodes
        if not node["ignored"]
    }
    for expected in (
        ("heading", "Captions"),
        ("heading", "Image 1"),
        ("article", "Image 1"),
        ("image", "a red ball on grass"),
        ("slider", "Attention of first, word by word"),
        ("searchbox", "Search captions, references and ids"),
        ("combobox", "of"),
        ("list", "Images"),
        ("navigation", "Pages"),
        ("checkbox", "first"),
        ("table", "Models and their scores"),
        ("columnheader", "CIDEr"),
        ("link", "Skip to the images"),
        ("status", ""),
        ("paragraph", ""),
    ):
        assert expected in found, expected
    assert ("StaticText", "In no reference: blue.") in found
    unnamed = {role for role, name in found if not name}
    assert not unnamed & {"button", "checkbox", "combobox", "slider", "image", "searchbox"}


def test_pictures_of_any_shape_keep_it(driver, tmp_path):
    runs = make_runs(tmp_path)
    Image.new("RGB", (30, 60)).save(tmp_path / "data/images/12.png")
    write_explorer(runs, tmp_path / "page.html")
    driver.get(chromium.url(tmp_path / "page.html"))
    until(driver, lambda: shown(driver))
    frame = card(driver, 12).find_element("css selector", ".frame")
    until(driver, lambda: frame.rect["height"] > 1.9 * frame.rect["width"])
    stage = driver.find_element("css selector", ".stage").rect
    assert frame.rect["height"] <= stage["height"] + 1

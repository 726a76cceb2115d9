"""The explorer in headless Chromium: what is clicked, and what is shown then."""

import chromium
import pytest
from explorer_files import make_results, make_runs
from PIL import Image

from sparsecap_jax.commands.explorer import write_explorer
from sparsecap_jax.files import write_json

pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
HOSTILE = '</script><script>window.hurt = 1</script><img src=x onerror="window.hurt = 1"> & ball'
WAIT = 10


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


def until(driver, done):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, WAIT, poll_frequency=0.02).until(lambda _: done())


def elements(driver, selector):
    return driver.find_elements("css selector", selector)


def texts(driver, selector):
    """The texts of all elements, those below the screen too."""
    script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
    return driver.execute_script(script, selector)


def choose(driver, field, label):
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", field)).select_by_visible_text(label)


def shown(driver):
    """The numbers of the images on the page, in order."""
    return [int(text.removeprefix("Image ")) for text in texts(driver, ".card h2")]


def expect(driver, numbers):
    """Wait until the page shows these images in this order."""
    from selenium.common.exceptions import TimeoutException

    try:
        until(driver, lambda: shown(driver) == numbers)
    except TimeoutException:
        assert shown(driver) == numbers


def card(driver, number):
    """The card of an image, once its picture and regions are there."""
    found = elements(driver, ".card")[shown(driver).index(number)]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    until(driver, lambda: found.find_elements("css selector", "img, .empty"))
    until(driver, lambda: found.find_elements("css selector", "svg rect, .walk"))
    return found


def inside(found, selector):
    return [one.text for one in found.find_elements("css selector", selector)]


def test_an_image_is_shown_with_all_that_was_said_of_it(page):
    driver = page()
    assert driver.title == "Captions"
    assert texts(driver, "#about") == ["13 images, captions of 2 models"]
    expect(driver, [12, 13, *range(1, 12)])
    one = card(driver, 3)
    assert inside(one, ".references li") == ["a red ball on grass", "the ball 3"]
    assert inside(one, ".caption") == ["a red ball 3", "a blue ball 3"]
    assert inside(one, "mark") == ["blue"]
    assert inside(one, ".model .hidden") == ["In no reference: blue."]
    assert inside(one, ".model-0 dl div") == ["CIDEr\n0.300", "Bleu_1\n0.500"]
    assert inside(one, ".model-1 dl div") == [
        "CIDEr\n0.850\n+0.550",
        "Bleu_1\n0.750\n+0.250",
    ]
    picture = one.find_element("css selector", "img")
    assert picture.get_attribute("alt") == "a red ball on grass"
    until(driver, lambda: picture.get_property("naturalWidth") == 40)
    frame = one.find_element("css selector", ".frame").rect
    assert frame["width"] / frame["height"] == pytest.approx(2, abs=0.02)
    assert card(driver, 12).find_element("css selector", ".missing").text == "no caption"


def test_the_table_has_the_scores_of_all_images_and_means_of_the_chosen_ones(page):
    driver = page()
    rows = [text.split("\n") for text in inside(driver.find_element("id", "table"), "tr")]
    head = texts(driver, "#table thead th")
    assert head == [
        *("model", "CIDEr, mean of 13 chosen images", "split", "images", "sparsity"),
        *("CIDEr", "Bleu_1"),
    ]
    assert texts(driver, "#table tbody td:first-child") == ["first", "", "second"]
    assert texts(driver, "#table tbody td:nth-child(3)") == ["test", "val", "test"]
    # Means of n / 10 over 1..13 and over 12..13; of 1 - n / 20 over 1..11.
    assert texts(driver, ".mean") == ["0.700", "0.700"]
    assert texts(driver, "#table tbody td:nth-child(6)") == [
        "0.6000.100 to 0.900",
        "1.2500.100 to 0.900",
        "0.7000.100 to 0.900",
    ]
    choose(driver, "split", "val")
    expect(driver, [12, 13])
    assert texts(driver, ".mean") == ["1.250", "-"]
    assert len(rows) == 4


def test_sorting_by_scores_and_differences(page):
    driver = page()
    choose(driver, "sort", "CIDEr")
    expect(driver, [*range(13, 0, -1)])
    choose(driver, "of", "second")
    expect(driver, [*range(1, 12), 12, 13])  # without a score: last
    choose(driver, "direction", "lowest first")
    expect(driver, [*range(11, 0, -1), 12, 13])
    choose(driver, "of", "first")
    choose(driver, "minus", "second")  # 3 n / 20 - 1
    expect(driver, [*range(1, 12), 12, 13])
    until(driver, lambda: elements(driver, ".worse"))
    assert inside(card(driver, 1), ".model-0 .by") == ["CIDEr\n0.100\n\u22120.850"]
    choose(driver, "sort", "words in no reference")
    choose(driver, "direction", "highest first")
    choose(driver, "of", "second")
    choose(driver, "minus", "nothing")
    expect(driver, [*range(1, 12), 12, 13])
    assert inside(card(driver, 1), ".model-1 .by") == ["words in no reference\n1"]


def test_search(page):
    driver = page()
    field = driver.find_element("id", "search")
    field.send_keys("blue 1")  # in any text of an image
    expect(driver, [1, 10, 11])
    assert texts(driver, "#status") == ["Images 1 to 3 of 3 (of 13)"]
    field.clear()
    field.send_keys('"THE BALL 1')
    expect(driver, [12, 13, 1, 10, 11])
    field.send_keys('2"')
    expect(driver, [12])
    field.send_keys(" nothing")
    expect(driver, [])
    assert texts(driver, "#status") == ["No image fits: widen the search or the filters"]
    driver.find_element("id", "again").click()
    expect(driver, [12, 13, *range(1, 12)])


def test_filters(page):
    driver = page()
    choose(driver, "split", "test")
    expect(driver, [*range(1, 12)])
    choose(driver, "group", "even")
    expect(driver, [2, 4, 6, 8, 10])
    driver.find_element("id", "again").click()
    choose(driver, "show", "captions that differ")
    expect(driver, [*range(1, 12)])
    boxes = elements(driver, "#table input")
    boxes[1].click()
    expect(driver, [])  # one model alone does not differ
    choose(driver, "show", "words that no reference has")
    expect(driver, [])
    choose(driver, "show", "all captions")
    expect(driver, [12, 13, *range(1, 12)])
    assert texts(driver, ".model h3") == ["first"] * 13
    boxes[1].click()
    boxes[0].click()
    expect(driver, [*range(1, 12)])
    assert {*texts(driver, ".model h3")} == {"second"}


def test_pages(page):
    driver = page()
    choose(driver, "size", "10")
    expect(driver, [12, 13, *range(1, 9)])
    assert texts(driver, "#status") == ["Images 1 to 10 of 13"]
    first, last = elements(driver, ".pages")
    last.find_element("class name", "next").click()
    expect(driver, [9, 10, 11])
    assert texts(driver, "#status") == ["Images 11 to 13 of 13"]
    assert driver.switch_to.active_element.get_attribute("id") == "cards"
    assert not first.find_element("class name", "next").is_enabled()
    first.find_element("class name", "previous").click()
    assert shown(driver)[0] == 12
    number = first.find_element("class name", "page")
    number.send_keys("\b2\n")
    expect(driver, [9, 10, 11])
    assert texts(driver, ".of") == ["of 2", "of 2"]
    choose(driver, "sort", "CIDEr")  # begins with the first page again
    expect(driver, [*range(13, 3, -1)])


def test_the_address_keeps_what_is_chosen(page):
    driver = page(sort="CIDEr", direction="up", split="test", size="10", page="2", minus="1")
    expect(driver, [11])
    choose(driver, "of", "second")
    choose(driver, "minus", "nothing")
    elements(driver, "#table input")[0].click()
    driver.refresh()
    until(driver, lambda: shown(driver) == [*range(11, 1, -1)])
    assert {*texts(driver, ".model h3")} == {"second"}
    driver = page(sort="unheard", page="-3", size="7")
    expect(driver, [12, 13, *range(1, 12)])


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


def test_captions_are_text(page):
    driver = page("odd")
    assert driver.title == HOSTILE
    one = card(driver, 1)
    assert inside(one, ".caption")[0] == HOSTILE
    assert one.find_elements("css selector", ".caption img, .caption script") == []
    assert driver.execute_script("return window.hurt") is None
    assert inside(card(driver, 2), ".missing") == ["empty caption"]
    marked = [one.text for one in card(driver, 3).find_elements("css selector", ".model-0 mark")]
    assert marked == ["红", "球"]
    assert inside(card(driver, 3), ".caption")[0].replace("\u200b", "") == "红球 a"


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
        (node["role"]["value"], node.get("name", {}).get("value", ""))
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

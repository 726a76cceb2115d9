"""The explorer in headless Chromium: what is sorted, searched and filtered, and shown then."""

import chromium
import pytest
from explorer_driver import HOSTILE, card, choose, elements, expect, inside, shown, texts, until

pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())


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

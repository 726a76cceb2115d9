"""Steps of a browser on a page of the explorer; shared by its tests."""

WAIT = 10
HOSTILE = '</script><script>window.hurt = 1</script><img src=x onerror="window.hurt = 1"> & ball'


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

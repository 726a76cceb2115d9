"""Headless Chromium, driven by selenium; shared by tests of pages and benchmarks/explorer.py."""

import contextlib
import pathlib
import shutil
import tempfile

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def missing():
    """Say what keeps pages from being tried in a browser; "" if nothing does."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no selenium (pip install selenium)"
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    advice = "(apt-get install chromium chromium-driver)"
    return f"no {' and '.join(programs)} {advice}" if programs else ""


@contextlib.contextmanager
def browser(width=1400, height=1000, dark=False, scale=1):
    """Yield a driver of a new Chromium, without a network and without a past."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            emulate(driver, width, height, dark, scale)
            yield driver
        finally:
            driver.quit()


def emulate(driver, width=1400, height=1000, dark=False, scale=1):
    """Set size and colours of the screen; narrow ones are phones."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale}
    metrics["mobile"] = width < 600
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def url(path, **address):
    """Return the address of a page on disk."""
    from urllib.parse import urlencode

    return pathlib.Path(path).resolve().as_uri() + (f"#{urlencode(address)}" if address else "")

"""The service's own front page in Chromium: a photo gets its caption, a damaged one a reason."""

import chromium
import pytest
from service_process import Service

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.photos.images import EXAMPLES

pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())


def test_a_photo_is_captioned_and_a_damaged_one_refused(tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes((EXAMPLES / "cat.jpg").read_bytes()[:2000])
    (expected,) = Captioner.load("flickr8k").caption_photos(EXAMPLES / "cat.jpg")
    with Service() as service, chromium.browser(width=500) as driver:
        driver.get(service.url)
        texts = []
        for photo in (EXAMPLES / "cat.jpg", damaged):
            driver.find_element(By.ID, "file").send_keys(str(photo))
            caption = driver.find_element(By.ID, "caption")
            wait = WebDriverWait(driver, 30)
            wait.until(lambda _, caption=caption: caption.text not in ("", "...", *texts))
            texts.append(caption.text)
        assert texts[0] == expected.text
        assert texts[1].startswith("photo: broken image")
        assert caption.get_attribute("class") == "problem"
        log = [entry["message"] for entry in driver.get_log("browser")]
        assert all(" 422 " in message for message in log), log

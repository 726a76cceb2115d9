"""Folders of static files on a server of their own, and the captioner's JavaScript in a page."""

import contextlib
import functools
import http.server
import threading

from selenium.webdriver.support.ui import WebDriverWait

WAIT = 30

# Captions and words of images; a file has their numbers: features, boxes, fc, image by image.
CAPTION = """
const [name, file, counts, width, search] = arguments;
const done = arguments[arguments.length - 1];
(async () => {
  const { Captioner } = await import(new URL("captioner.js", location.href));
  const whole = async (stream) => new Response(stream).arrayBuffer();
  const coded = (await fetch(name)).body.pipeThrough(new DecompressionStream("deflate"));
  const captioner = new Captioner(await whole(coded));
  Object.assign(captioner.header.search, search);
  const numbers = new Float32Array(await whole((await fetch(file)).body));
  let at = 0;
  const take = (count) => numbers.subarray(at, (at += count));
  return counts.map((regions) => {
    const [features, boxes, fc] = [regions * width, regions * 4, width].map(take);
    const image = { regions, features, boxes, fc };
    const captions = captioner.captions(image);
    const words = captions.length ? captioner.words(captions[0].tokens) : [];
    return { captions, weights: words.map(({ weights }) => [...weights]) };
  });
})().then(done, (error) => done(String(error.stack ?? error)));
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """Yield the address of a folder; nothing answers there afterwards."""
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def until(driver, done):
    return WebDriverWait(driver, WAIT, poll_frequency=0.02).until(lambda _: done())


def text(driver, element):
    return driver.find_element("id", element).get_property("textContent")


def captions_in_page(driver, folder, name, images, **search):
    """What the page says of images `(features, boxes, fc)` with the captioner in a file."""
    import numpy as np

    parts = [np.float32(part).ravel() for image in images for part in image]
    (folder / "images.bin").write_bytes(np.concatenate(parts).tobytes())
    counts, width = [len(features) for features, _, _ in images], images[0][0].shape[1]
    driver.set_script_timeout(WAIT)
    found = driver.execute_async_script(CAPTION, name, "images.bin", counts, width, search)
    assert isinstance(found, list), found
    return found

"""What the tests of the service share: clean refusals, gated captioners, bodies."""

import asyncio
import io
import json
import pathlib
import re
import threading
import warnings

import httpx
import numpy as np
from PIL import Image

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.photos.images import EXAMPLES
from sparsecap_jax.service.limits import Limits

with warnings.catch_warnings():  # Starlette would rather have httpx2
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

REPO = pathlib.Path(__file__).parents[2]
URL = "/v1/caption"
PHOTOS = sorted(EXAMPLES.glob("*.jpg"))
SMALL = Limits(max_bytes=600_000, max_pixels=400_000, max_regions=20, max_rows=6)
JPEG, JSON = {"content-type": "image/jpeg"}, {"content-type": "application/json"}
# Paths, tracebacks, addresses of objects.
UNCLEAN = re.compile(
    r'Traceback|File "|\.py\b|site-packages|0x[0-9a-f]{6}|/(work|tmp|home|usr|root)\b|Error\('
)


def refusal(response, status, reason):
    """Check that an answer is such a refusal and gives nothing away; return its message."""
    content = response.json()
    assert (response.status_code, content["reason"]) == (status, reason), content
    assert set(content) == {"reason", "message"} and content["message"]
    assert not UNCLEAN.search(response.text), response.text
    assert not UNCLEAN.search(str(response.headers))
    assert ("retry-after" in response.headers) == (status in (429, 503))
    return content["message"]


def client_of(app):
    """A client that runs an application, for `with`."""
    return TestClient(app, raise_server_exceptions=False)


def features_body(features, **more):
    """JSON of an image's features."""
    return json.dumps({"features": np.asarray(features).tolist(), **more})


def picture_body(width=20, height=10, kind="PNG", mode="RGB"):
    """A file of a picture of noise."""
    rng, file = np.random.default_rng(0), io.BytesIO()
    pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


class Gated(Captioner):
    """A captioner that waits at a gate before each batch, and notes the batches' sizes."""

    def __init__(self, captioner):
        self.__dict__ = dict(vars(captioner))
        self.gate, self.entered, self.sizes = threading.Event(), threading.Event(), []

    def candidates(self, features, *arguments, **search):
        self.sizes.append(len(features))
        self.entered.set()
        assert self.gate.wait(30)
        return super().candidates(features, *arguments, **search)


async def wait_for(condition):
    """Wait until a condition holds, 30 s at most."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def connected(app):
    """A client that asks an application within the running loop."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)

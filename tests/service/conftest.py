"""A service of the package's captioner, with small limits."""

import pytest
from service_cases import PHOTOS, SMALL, client_of

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.photos.extractors import open_for
from sparsecap_jax.service.app import make_app


@pytest.fixture(scope="module")
def captioner():
    return Captioner.load("flickr8k-mini", backend="sparse")


@pytest.fixture(scope="module")
def images(captioner):
    """Features of three photos."""
    return captioner.extractor([open_for(captioner.extractor, path) for path in PHOTOS])


@pytest.fixture(scope="module")
def client(captioner):
    with client_of(make_app(captioner, SMALL)) as client:
        yield client

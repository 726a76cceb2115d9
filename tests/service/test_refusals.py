"""Every refusal by its cause; none gives anything of the machine away."""

import asyncio
import json

import pytest
from service_cases import (
    JPEG,
    JSON,
    PHOTOS,
    SMALL,
    URL,
    Gated,
    client_of,
    connected,
    features_body,
    picture_body,
    refusal,
    wait_for,
)

from sparsecap_jax.service.app import make_app
from sparsecap_jax.service.limits import Limits

OPTIONS = {
    "beam_siz=2": "did you mean 'beam_size'",
    "beam_size=two": "beam_size: found 'two'",
    "beam_size=2.5": "beam_size is 2.5; expected int",
    "beam_size=0": "beam_size is 0; expected at least 1",
    "beam_size=": "beam_size: found ''",
    "beam_size=7": "keeps 7 rows, beams or samples, times the states of required words; expected",
    "beam_size=2&beam_size=3": "beam_size: found twice",
    "beam_size=" + "9" * 5000: "beam_size",
    "beam_size=" + "[" * 5000: "beam_size",
    "temperature=NaN": "temperature is nan",
    "temperature=1e400": "temperature is inf",
    "search=bean": "search is 'bean'; did you mean 'beam'",
    "search=greedy&beam_size=3": "only beam, diverse_beam can use it",
    "search=sample&num_samples=7": "keeps 7 rows",
    "required=dog&required=man": "keeps 12 rows",
    "suppress=qwertz": "has a word that the tokenizer does not know",
    "no_repeat=True": "no_repeat: found 'True'",
    "min_length=19": "expected at most max_length 18",
    "required=dog&required="
    + "&required=".join(["man", "boy", "girl", "street", "snow", "ball"]): "states",
    "attention=1": "attention is 1; expected bool",
    "length_penalty=wu_x": "length_penalty: found 'wu_x'",
    "%2Fetc%2Fpasswd=%00%ff": "unknown",
}


@pytest.mark.parametrize("query", OPTIONS)
def test_bad_options(client, query):
    answer = client.post(f"{URL}?{query}", content=picture_body(), headers=JPEG)
    assert OPTIONS[query] in refusal(answer, 422, "bad_option")


def damaged_photos():
    """Bodies that are no photos, by what is wrong with them."""
    whole = PHOTOS[0].read_bytes()
    png = picture_body(64, 64)
    yield "nothing", b"", "not an image"
    yield "text", b"GIF89a of a cat", None
    yield "cut", whole[:3000], "broken image"
    yield "header alone", whole[:20], None
    yield "no size", png[:16] + bytes(8) + png[24:], None
    yield "bits", png[:60] + bytes(100) + png[160:], "broken image"
    yield "script", b"<svg onload=alert(1)></svg>", "not an image"
    yield "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"


@pytest.mark.parametrize(("name", "body", "message"), [*damaged_photos()])
def test_damaged_photos(client, name, body, message):
    found = refusal(client.post(URL, content=body, headers=JPEG), 422, "bad_photo")
    assert message is None or message in found


ONE = {"features": [[0.5] * 1280]}
FEATURES = {
    "": "broken JSON",
    "{": "broken JSON",
    "[" * 100_000: "broken JSON",
    "[]": "expected an object with 'features', found list",
    "{}": "expected an object with 'features', found an object without",
    json.dumps({"features": [""] * 100_000 + ["x" * 90_000]}): "found str",
    '{"features": null}': "expected an object with 'features'",
    '{"features": [[1, 2], [3]]}': "expected lists of numbers",
    '{"features": [["a"]]}': "features: expected lists of numbers, found str",
    '{"features": [[true]]}': "features: expected lists of numbers, found bool",
    '{"features": {"0": 1}}': "expected lists of numbers",
    '{"features": 7}': "expected shape [R, 1280]",
    '{"features": [[1, 2]]}': "expected shape [R, 1280]",
    '{"features": [], "features": []}': "occurs 2 times",
    json.dumps({"features": [[0.5] * 1279 + [10**400]]}): "expected lists of numbers",
    json.dumps({"features": [[0.5] * 1279 + [float("nan")]]}): "1 values are NaN",
    json.dumps({"features": [[0.5] * 1279 + [1e300]]}): "too large for float32",
    json.dumps(ONE | {"fc": [1.0]}): "fc: expected shape [1280]",
    json.dumps(ONE | {"boxes": [[0, 0, 2, 1]]}): "within [0, 1]",
    json.dumps(ONE | {"box": []}): "did you mean 'boxes'",
    json.dumps(ONE | {"\ud800": []}): "unknown",
}


@pytest.mark.parametrize("body", FEATURES, ids=range(len(FEATURES)))
def test_bad_features(client, body):
    answer = client.post(URL, content=body, headers=JSON)
    assert FEATURES[body] in refusal(answer, 422, "bad_features")


def test_too_large(client):
    answer = client.post(URL, content=bytes(SMALL.max_bytes + 1), headers=JPEG)
    assert "larger than 600000 bytes" in refusal(answer, 413, "too_many_bytes")
    parts = iter([bytes(550_000), bytes(50_001)])  # no length declared
    refusal(client.post(URL, content=parts, headers=JPEG), 413, "too_many_bytes")
    answer = client.post(URL, content=picture_body(800, 501, "JPEG"), headers=JPEG)
    assert "800 x 501 pixels" in refusal(answer, 413, "too_many_pixels")
    blank = json.dumps({"features": [[0] * 1280] * 21})
    answer = client.post(URL, content=blank, headers=JSON)
    assert "21 regions; expected at most 20" in refusal(answer, 413, "too_many_regions")
    assert client.post(URL, content=picture_body(800, 500, "JPEG"), headers=JPEG).is_success


@pytest.mark.parametrize("kind", [None, "", "text/plain", "multipart/form-data; boundary=x"])
def test_unknown_types(client, kind):
    headers = {} if kind is None else {"content-type": kind}
    refusal(client.post(URL, content=picture_body(), headers=headers), 415, "unknown_type")


def test_pages_and_methods_that_there_are_not(client):
    for path in ("/nothing", "/v1", "/v1/caption/", "/..%2f..%2fetc/passwd", "/%00", "//evil/x"):
        refusal(client.get(path, follow_redirects=False), 404, "not_found")
    answer = client.get(URL)
    refusal(answer, 405, "wrong_method")
    assert answer.headers["allow"] == "POST"
    refusal(client.post("/healthz"), 405, "wrong_method")


def test_a_full_service_and_one_that_takes_too_long(captioner, images):
    gated, body = Gated(captioner), features_body(images[0].features)

    async def ask():
        app = make_app(gated, Limits(max_requests=2, seconds=0.5))
        async with connected(app) as client:
            held = [asyncio.ensure_future(client.post(URL, content=body, headers=JSON))]
            await wait_for(gated.entered.is_set)
            held.append(asyncio.ensure_future(client.post(URL, content=body, headers=JSON)))
            await wait_for(lambda: len(app.state.service.queue) == 1)
            busy = await client.post(URL, content=body, headers=JSON)
            late = await asyncio.gather(*held)
            gated.gate.set()
            app.state.service.limits = Limits(seconds=30.0)
            after = await client.post(URL, content=body, headers=JSON)
            metrics = (await client.get("/metrics")).text
        app.state.service.close()
        return busy, late, after, metrics

    busy, late, after, metrics = asyncio.run(ask())
    assert "2 requests are worked on" in refusal(busy, 429, "busy")
    for answer in late:
        assert "no caption within 0.5 s" in refusal(answer, 503, "timeout")
    assert after.is_success
    assert gated.sizes == [1, 1]  # what waited was given up, and not captioned for nobody
    assert 'sparsecap_refused_total{reason="timeout"} 2.0\n' in metrics
    assert 'sparsecap_refused_total{reason="busy"} 1.0\n' in metrics
    assert "sparsecap_requests_working 0.0\n" in metrics


def test_a_fault_says_nothing_and_harms_nobody(captioner, images):
    class Faulty(Gated):
        def candidates(self, features, *arguments, **search):
            if search["search"] == "greedy":
                raise RuntimeError(f"{__file__}: secret")
            return super().candidates(features, *arguments, **search)

    faulty, body = Faulty(captioner), features_body(images[0].features)
    faulty.gate.set()
    with client_of(make_app(faulty)) as client:
        answer = client.post(f"{URL}?search=greedy", content=body, headers=JSON)
        assert "secret" not in refusal(answer, 500, "fault")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert client.post(URL, content=body, headers=JSON).is_success
        assert client.get("/healthz").json() == {"status": "ok"}


def test_health_notices_that_nobody_captions(captioner):
    app = make_app(captioner)
    with client_of(app) as client:
        assert client.get("/healthz").is_success
        app.state.service.queue.close()
        refusal(client.get("/healthz"), 500, "fault")


def test_a_file_that_may_not_be_read_is_not_there(captioner, tmp_path, monkeypatch):
    def denied(*arguments):
        raise PermissionError(f"{tmp_path}: secret")

    (tmp_path / "index.html").write_text("a page")
    monkeypatch.setattr("sparsecap_jax.service.app.StaticFiles.lookup_path", denied)
    with client_of(make_app(captioner, site=tmp_path)) as client:
        assert "secret" not in refusal(client.get("/index.html"), 404, "not_found")

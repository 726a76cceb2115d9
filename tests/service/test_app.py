"""Answers of the application: captions as of a `Captioner`, and every refusal by its cause."""

import asyncio
import json
import threading

import numpy as np
import pytest
from captioner_runs import image_arrays, make_run
from service_cases import (
    JPEG,
    JSON,
    URL,
    Gated,
    client_of,
    connected,
    features_body,
    picture_body,
    refusal,
    wait_for,
)

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import Caption
from sparsecap_jax.photos.extractors import open_for
from sparsecap_jax.photos.images import EXAMPLES
from sparsecap_jax.service.app import answer_of, make_app
from sparsecap_jax.service.captions import Captioned
from sparsecap_jax.service.inputs import Extras
from sparsecap_jax.service.limits import REASONS, Limits

PHOTOS = sorted(EXAMPLES.glob("*.jpg"))
SMALL = Limits(max_bytes=600_000, max_pixels=400_000, max_regions=20, max_rows=6)


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


@pytest.fixture(scope="module")
def with_boxes(tmp_path_factory):
    """A captioner that needs boxes and takes no photos."""
    run = make_run(tmp_path_factory.mktemp("run") / "run", "relation_transformer")
    return Captioner.load(run, backend="sparse")


def same(answer, caption):
    """Check that an answer holds a caption; sums are rounded differently in batches."""
    assert answer["caption"] == caption.text and answer["words"] == caption.text.split()
    assert answer["log_prob"] == pytest.approx(caption.log_prob, rel=1e-5)
    assert answer["score"] == pytest.approx(caption.score, rel=1e-5)


def test_photos_get_the_captions_of_the_captioner(client, captioner):
    expected = list(captioner.caption_photos(PHOTOS))
    assert len({caption.text for caption in expected}) == 3
    for path, caption in zip(PHOTOS, expected, strict=True):
        answer = client.post(URL, content=path.read_bytes(), headers=JPEG).json()
        same(answer, caption)
        assert answer["batch"] == 1 and 0 < answer["seconds"] < 10


def test_a_search_in_the_query_is_that_of_the_captioner(client, captioner):
    query = {"search": "diverse_beam", "beam_size": 4, "diversity": 1.5, "suppress": ["dog", "man"]}
    query |= {"prefix": "two", "no_repeat": "true", "candidates": "true", "attention": "true"}
    body = PHOTOS[0].read_bytes()
    answer = client.post(URL, params=query, content=body, headers=JPEG).json()
    search = {**query, "no_repeat": True, "attention": True}
    del search["candidates"]
    (expected,) = captioner.photo_candidates(PHOTOS[:1], **search)
    assert [found["caption"] for found in answer["candidates"]] == [one.text for one in expected]
    best = max(expected, key=lambda caption: caption.score)
    same(answer, best)
    assert answer["caption"].startswith("two ")
    np.testing.assert_allclose(answer["attention"], best.attention, atol=1e-5)
    np.testing.assert_allclose(answer["boxes"], captioner.extractor.boxes, atol=1e-5)


def test_features_get_the_captions_of_the_captioner(client, captioner, images):
    for image in images:
        body = features_body(image.features, fc=image.fc.tolist())
        answer = client.post(f"{URL}?search=greedy&min_length=4", content=body, headers=JSON).json()
        expected = captioner.caption(image.features, fc=image.fc, search="greedy", min_length=4)
        same(answer, expected)


def test_samples_do_not_depend_on_other_requests(captioner, images):
    """An image of a batch is drawn for by its place: requests that sample are captioned alone."""

    async def ask():
        app = make_app(captioner)
        async with connected(app) as client:
            posts = [
                client.post(f"{URL}?search=sample&seed=3", content=body, headers=JSON)
                for body in [features_body(image.features) for image in images]
            ]
            answers = [answer.json() for answer in await asyncio.gather(*posts)]
        app.state.service.close()
        return answers

    answers = asyncio.run(ask())
    assert [answer["batch"] for answer in answers] == [1, 1, 1]
    for answer, image in zip(answers, images, strict=True):
        same(answer, captioner.caption(image.features, search="sample", seed=3))


def test_concurrent_requests_are_captioned_in_batches(captioner, images):
    """One image occupies the captioner while eight arrive, two of them with another search."""
    gated = Gated(captioner)
    bodies = [features_body(images[number % 3].features) for number in range(9)]
    queries = ["beam_size=2"] * 7 + ["search=greedy"] * 2

    async def ask():
        app = make_app(gated, Limits(max_batch=4))
        service = app.state.service
        async with connected(app) as client:
            posts = [
                asyncio.ensure_future(client.post(f"{URL}?{query}", content=body, headers=JSON))
                for body, query in zip(bodies[:1], queries, strict=False)
            ]
            await wait_for(gated.entered.is_set)
            for body, query in zip(bodies[1:], queries[1:], strict=True):
                posts.append(
                    asyncio.ensure_future(client.post(f"{URL}?{query}", content=body, headers=JSON))
                )
            await wait_for(lambda: len(service.queue) == 8)
            gauge = (await client.get("/metrics")).text
            gated.gate.set()
            answers = [answer.json() for answer in await asyncio.gather(*posts)]
            metrics = (await client.get("/metrics")).text
        service.close()
        return answers, gauge, metrics

    answers, gauge, metrics = asyncio.run(ask())
    assert sorted(gated.sizes) == [1, 2, 2, 4]
    assert sorted(answer["batch"] for answer in answers) == [1, 2, 2, 2, 2, 4, 4, 4, 4]
    for number, answer in enumerate(answers):
        search = {"beam_size": 2} if number < 7 else {"search": "greedy"}
        same(answer, captioner.caption(images[number % 3].features, **search))
    assert "sparsecap_queue_images 8.0\n" in gauge
    assert "sparsecap_requests_working 9.0\n" in gauge
    assert "sparsecap_batch_images_count 4.0\n" in metrics
    assert "sparsecap_batch_images_sum 9.0\n" in metrics
    assert 'sparsecap_requests_total{page="/v1/caption",status="200"} 9.0\n' in metrics


def test_batches_are_filled_up_for_a_runtime_that_compiles(captioner, images):
    gated = Gated(captioner)
    gated.gate.set()

    async def ask():
        app = make_app(gated, Limits(max_batch=3, max_wait_ms=10_000.0), pad_batches=True)
        async with connected(app) as client:
            posts = [
                client.post(
                    f"{URL}?search=greedy", content=features_body(one.features), headers=JSON
                )
                for one in images
            ]
            answers = [answer.json() for answer in await asyncio.gather(*posts)]
        app.state.service.close()
        return answers

    answers = asyncio.run(ask())
    for answer, image in zip(answers, images, strict=True):
        same(answer, captioner.caption(image.features, search="greedy"))
    real = [answer["batch"] for answer in answers]
    assert all(size in (1, 2, 4) for size in gated.sizes) and max(gated.sizes) >= max(real)


OPTIONS = {
    "beam_siz=2": "did you mean 'beam_size'",
    "beam_size=two": "beam_size: found 'two'",
    "beam_size=2.5": "beam_size is 2.5; expected int",
    "beam_size=0": "beam_size is 0; expected at least 1",
    "beam_size=": "beam_size: found ''",
    "beam_size=7": "beam_size: found 7, expected at most 6 here",
    "beam_size=2&beam_size=3": "beam_size: found twice",
    "beam_size=" + "9" * 5000: "beam_size",
    "beam_size=" + "[" * 5000: "beam_size",
    "temperature=NaN": "temperature is nan",
    "temperature=1e400": "temperature is inf",
    "search=bean": "search is 'bean'; did you mean 'beam'",
    "search=greedy&beam_size=3": "only beam, diverse_beam can use it",
    "search=sample&num_samples=7": "num_samples: found 7, expected at most 6 here",
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
    "[]": "expected an object with 'features'",
    "{}": "expected an object with 'features'",
    '{"features": null}': "expected an object with 'features'",
    '{"features": [[1, 2], [3]]}': "expected lists of numbers",
    '{"features": [["a"]]}': "expected lists of numbers",
    '{"features": [[true]]}': "expected lists of numbers",
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


def test_a_model_that_needs_boxes_and_takes_no_photos(with_boxes):
    (features,), (boxes,) = image_arrays(1)
    with client_of(make_app(with_boxes)) as client:
        answer = client.post(URL, content=features_body(features), headers=JSON)
        assert "boxes: found none" in refusal(answer, 422, "bad_features")
        answer = client.post(URL, content=picture_body(), headers=JPEG)
        assert "takes features alone" in refusal(answer, 415, "unknown_type")
        body = features_body(features, boxes=boxes.tolist())
        same(
            client.post(URL, content=body, headers=JSON).json(), with_boxes.caption(features, boxes)
        )
        paths = client.get("/openapi.json").json()["paths"]
    assert list(paths[URL]["post"]["requestBody"]["content"]) == ["application/json"]


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


def test_types_are_taken_with_parameters_and_pictures_without_a_kind(client):
    body = features_body([[0.5] * 1280])
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        assert client.post(URL, content=body, headers={"content-type": kind}).is_success
    headers = {"content-type": "application/octet-stream"}
    assert client.post(URL, content=picture_body(), headers=headers).is_success


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
        assert client.post(URL, content=body, headers=JSON).is_success
        assert client.get("/healthz").json() == {"status": "ok"}


def test_health_notices_that_nobody_captions(captioner):
    app = make_app(captioner)
    with client_of(app) as client:
        assert client.get("/healthz").is_success
        app.state.service.queue.close()
        refusal(client.get("/healthz"), 500, "fault")


def test_numbers_that_are_not_finite_have_a_place_in_json(client):
    """The largest floats overflow within the model; its captions may be anything."""
    with np.errstate(all="ignore"):
        body = features_body([[3e38] * 1280])
        answer = client.post(f"{URL}?attention=true", content=body, headers=JSON)
    assert answer.is_success and "NaN" not in answer.text


def test_constraints_that_leave_no_caption(images):
    nothing = Caption("", -np.inf, (), -np.inf, np.zeros((0, 14), np.float32))
    found = answer_of(Captioned([nothing], images[0], 1), Extras(attention=True))
    assert found["caption"] == "" and found["log_prob"] is None and found["score"] is None
    assert found["words"] == found["attention"] == []


def test_requests_of_many_threads(client, captioner):
    captions = captioner.caption_photos(PHOTOS)
    expected = {path: one.text for path, one in zip(PHOTOS, captions, strict=True)}
    found = []

    def ask(path):
        answer = client.post(URL, content=path.read_bytes(), headers=JPEG)
        found.append((path, answer.json()["caption"]))

    threads = [threading.Thread(target=ask, args=[path]) for path in PHOTOS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6 and all(expected[path] == text for path, text in found)


def test_the_description_names_every_option_and_reason(client):
    document = client.get("/openapi.json").json()
    post = document["paths"][URL]["post"]
    names = {parameter["name"]: parameter["schema"] for parameter in post["parameters"]}
    assert names["beam_size"] == {"type": "integer", "minimum": 1}
    assert names["temperature"] == {"type": "number", "exclusiveMinimum": 0}
    assert names["suppress"] == {"type": "array", "items": {"type": "string"}}
    assert names["search"]["enum"][:2] == ["greedy", "beam"]
    described = json.dumps(post["responses"])
    for reason, (status, _) in REASONS.items():
        if reason not in ("not_found", "wrong_method", "fault"):
            assert f"`{reason}`" in described and str(status) in post["responses"]
    image = document["components"]["schemas"]["Features"]["properties"]["features"]
    assert image["items"]["minItems"] == image["items"]["maxItems"] == 1280
    assert image["maxItems"] == SMALL.max_regions


def test_a_site_is_served_as_the_front_page(captioner, tmp_path):
    site = tmp_path / "site"
    (site / "more").mkdir(parents=True)
    (site / "index.html").write_text("<title>Mine</title>")
    (site / "model.wasm").write_bytes(b"\0asm")
    (site / "code.mjs").write_text("1")
    (tmp_path / "secret.txt").write_text("secret")
    (site / "link.txt").symlink_to(tmp_path / "secret.txt")
    app = make_app(captioner, SMALL, site=site)
    with client_of(app) as client:
        assert "Mine" in client.get("/").text
        assert client.get("/model.wasm").headers["content-type"] == "application/wasm"
        assert client.get("/code.mjs").headers["content-type"].startswith("text/javascript")
        for path in ("/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt", "/link.txt", "/more"):
            answer = client.get(path)
            assert "secret" not in answer.text
            refusal(answer, 404, "not_found")
        refusal(client.get("/" + "x" * 5000), 404, "not_found")
        refusal(client.post("/index.html"), 405, "wrong_method")
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.post(URL, content=picture_body(), headers=JPEG).is_success


def test_the_own_front_page_loads_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.text and "connect-src 'self'" in answer.text
    assert "{{" not in answer.text and "http" not in answer.text.replace("http-equiv", "")

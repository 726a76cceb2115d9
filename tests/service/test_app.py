"""Answers of the application: captions as of a `Captioner`, in batches, and its other pages."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest
from captioner_runs import image_arrays, make_run
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

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import Caption
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.service.app import answer_of, make_app
from sparsecap_jax.service.captions import Captioned, CaptionService
from sparsecap_jax.service.inputs import Extras
from sparsecap_jax.service.limits import REASONS, Limits, Refused


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


@pytest.mark.parametrize(
    ("search", "rows"),
    [
        ({}, 5),
        ({"search": "greedy"}, 1),
        ({"search": "sample", "num_samples": 7}, 7),
        ({"beam_size": 3, "required": ["dog"]}, 6),
        ({"beam_size": 3, "required": ["dog", "man"]}, 12),
        ({"beam_size": 4, "search": "diverse_beam", "required": ["dog", "man"]}, 4),
        ({"search": "greedy", "required": ["dog", "man"]}, 1),
        ({"beam_size": 3, "consensus": 20, "required": ["dog"]}, 26),
    ],
)
def test_rows_of_a_search(captioner, search, rows):
    assert captioner.check_search(**search) == rows


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


def test_an_image_waits_for_none_that_turns_out_to_be_broken(captioner, images):
    gate = threading.Event()

    def broken():
        assert gate.wait(30)
        raise Refused("bad_photo", "broken")

    async def ask():
        service = CaptionService(captioner, Limits(max_wait_ms=10_000.0, seconds=60.0, decoders=2))
        parts = [
            asyncio.ensure_future(service.caption(prepare, SearchOptions(), False))
            for prepare in (broken, lambda: images[0])
        ]
        await wait_for(lambda: len(service.queue) == 1)
        start = time.monotonic()
        gate.set()
        failed, captioned = await asyncio.gather(*parts, return_exceptions=True)
        seconds = time.monotonic() - start
        service.close()
        return failed, captioned, seconds

    failed, captioned, seconds = asyncio.run(ask())
    assert isinstance(failed, Refused) and captioned.batch == 1
    assert seconds < 5


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


def test_types_are_taken_with_parameters_and_pictures_without_a_kind(client):
    body = features_body([[0.5] * 1280])
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        assert client.post(URL, content=body, headers={"content-type": kind}).is_success
    headers = {"content-type": "application/octet-stream"}
    assert client.post(URL, content=picture_body(), headers=headers).is_success


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

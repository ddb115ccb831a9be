import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image

from pipeline.answers import server
from pipeline.answers.batching import Batcher
from pipeline.answers.models import Model
from pipeline.answers.pictures import prepare
from pipeline.answers.settings import Pictures
from tests.answers.helpers import SETTINGS, draw_two, encode, save_model

PICTURES = Pictures(longer_side=20, centre="mass")
PNG = encode(draw_two())


@pytest.fixture
def models(project: Path) -> dict[str, Model]:
    save_model("tiny", "tiny_conv", temperature=0.5)
    save_model("tiny", "tiny_dense", 5)
    return {name: Model("tiny", name, SETTINGS) for name in ("tiny_conv", "tiny_dense")}


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


Use = Callable[[httpx.AsyncClient], Awaitable[Any]]


@pytest.fixture
def with_client(models: dict[str, Model]) -> Callable[[Use], Any]:
    """Return a function that calls another one with a client of the application."""

    def call(use: Use) -> Any:
        async def main() -> Any:
            async with client_of(server.make_app(models, PICTURES, 2)) as client:
                return await use(client)

        return asyncio.run(main())

    return call


WithClient = Callable[[Use], Any]


def post(content: Any, path: str = "/predict", **more: Any) -> Use:
    return lambda client: client.post(path, content=content, **more)


def get(path: str) -> Use:
    return lambda client: client.get(path)


def test_each_variant_answers(with_client: WithClient, models: dict[str, Model]) -> None:
    """A picture gets the best guesses of each variant, and the image that they saw."""
    response = with_client(post(PNG))
    assert response.status_code == 200
    answer = response.json()
    image = prepare(draw_two(), (28, 28, 1), PICTURES, "it")
    assert answer["dataset"] == "tiny"
    assert list(answer["answers"]) == ["tiny_conv", "tiny_dense"]
    for name, guesses in answer["answers"].items():
        probabilities = models[name].probabilities(image[None])[0]
        order = np.argsort(-probabilities)[:3]
        assert [each["class"] for each in guesses] == [str(label) for label in order]
        assert [each["confidence"] for each in guesses] == pytest.approx(
            probabilities[order], abs=1e-6
        )
    np.testing.assert_array_equal(seen(answer), image[..., 0])


def seen(answer: dict[str, Any]) -> NDArray[np.uint8]:
    """Return the pixels of the image in an answer."""
    kind, _, data = answer["image"].partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_one_variant_answers_if_it_is_named(with_client: WithClient) -> None:
    """With a variant in the query only that one answers."""
    answer = with_client(post(PNG, params={"variant": "tiny_dense"})).json()
    assert list(answer["answers"]) == ["tiny_dense"]


@pytest.mark.slow
def test_requests_at_once_each_get_their_own_answer(with_client: WithClient) -> None:
    """Forty requests at once get the answers that they get one by one."""
    pictures = [encode(draw_two(100 + 9 * each)) for each in range(40)]

    async def ask(client: httpx.AsyncClient) -> tuple[list[Any], list[Any]]:
        alone = [(await client.post("/predict", content=each)).json() for each in pictures]
        asked = (client.post("/predict", content=each) for each in pictures)
        return alone, [each.json() for each in await asyncio.gather(*asked)]

    alone, together = with_client(ask)
    for first, second in zip(alone, together, strict=True):
        assert first["image"] == second["image"]
        for name, guesses in first["answers"].items():
            shares = [each["confidence"] for each in second["answers"][name]]
            assert shares == pytest.approx([each["confidence"] for each in guesses], abs=1e-5)


def test_the_model_is_described(with_client: WithClient, models: dict[str, Model]) -> None:
    """`/model` has classes and shape, and each variant's seeds, size and temperatures."""
    described = with_client(get("/model")).json()
    assert described["dataset"] == "tiny"
    assert described["classes"] == [*"0123456789"]
    assert described["image_shape"] == [28, 28, 1]
    assert described["variants"] == {
        "tiny_conv": {
            "parameters": models["tiny_conv"].parameters, "seeds": [0], "temperatures": [0.5],
            "precision": "float32",
        },
        "tiny_dense": {
            "parameters": models["tiny_dense"].parameters, "seeds": [5], "temperatures": [1.0],
            "precision": "float32",
        },
    }  # fmt: skip


def test_health_and_readiness_are_told(with_client: WithClient) -> None:
    """The server says that it is healthy and ready."""
    for path, status in (("/healthz", "ok"), ("/readyz", "ready")):
        response = with_client(get(path))
        assert (response.status_code, response.json()) == (200, {"status": status})


def test_it_is_not_ready_once_the_batches_have_stopped(
    with_client: WithClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nothing works on the requests any more, the server is not ready, but healthy."""
    monkeypatch.setattr(Batcher, "is_working", False)
    response = with_client(get("/readyz"))
    assert (response.status_code, response.json()) == (503, {"status": "stopped"})
    assert with_client(get("/healthz")).status_code == 200


@pytest.mark.parametrize("path", ["/", "/draw.js", "/model", "/healthz", "/nosuch"])
def test_each_answer_is_protected(with_client: WithClient, path: str) -> None:
    """Each answer forbids scripts, requests and frames from elsewhere, and guessing of types."""
    headers = with_client(get(path)).headers
    policy = dict(
        each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";")
    )
    assert policy == {
        "default-src": "'none'", "script-src": "'self'", "connect-src": "'self'",
        "img-src": "'self' data: blob:", "style-src": "'unsafe-inline'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_has_a_place_for_each_variant(with_client: WithClient) -> None:
    """The page names each variant, and its only script is a file of the server's."""
    response = with_client(get("/"))
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    for name in ("tiny_conv", "tiny_dense"):
        assert f'data-variant="{name}"' in response.text
    assert response.text.count("<script") == 1
    assert '<script src="/draw.js" defer></script>' in response.text
    script = with_client(get("/draw.js"))
    assert script.headers["content-type"].startswith("text/javascript")
    assert "use strict" in script.text


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/../params.yaml"])
def test_nothing_else_is_served(with_client: WithClient, path: str) -> None:
    """There are no pages that load scripts from elsewhere, and no files."""
    assert with_client(get(path)).status_code == 404


@pytest.mark.parametrize(
    ("content", "query", "status", "error"),
    [
        (b"", "", 400, "expected a picture as the body of the request"),
        (PNG, "?variant=nosuch", 404, "no variant 'nosuch'; there are tiny_conv, tiny_dense"),
        (b"no picture", "", 422, "the picture: is not a picture; expected one of PNG"),
        (PNG[:300], "", 422, "the picture: is damaged"),
        (encode(Image.new("L", (50, 50), 255)), "", 422, "the picture: has nothing on it"),
        (encode(Image.new("1", (6000, 6000))), "", 422, "at most 25,000,000 are read"),
    ],
    ids=["empty", "variant", "text", "truncated", "blank", "pixels"],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused(
    with_client: WithClient, content: bytes, query: str, status: int, error: str
) -> None:
    """Each kind of request that cannot be answered has its status, and a line that says why."""
    response = with_client(post(content, f"/predict{query}"))
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert error in response.json()["error"]
    assert "\n" not in response.json()["error"]


async def pieces(count: int, wait_s: float = 0) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 1000
        await asyncio.sleep(wait_s)


@pytest.mark.parametrize("announced", [True, False])
def test_too_large_a_body_is_refused(
    with_client: WithClient, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    """A body that is too large is refused, be its length announced or not."""
    monkeypatch.setattr(server, "MOST_BYTES", 50_000)
    response = with_client(post(b"x" * 50_001 if announced else pieces(51)))
    assert ("content-length" in response.request.headers) == announced
    assert response.status_code == 413
    assert response.json() == {"error": "a picture may have 50,000 bytes at most"}
    assert with_client(post(b"x" * 50_000)).status_code == 422


def test_a_slow_body_is_given_up(with_client: WithClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that takes too long is given up."""
    monkeypatch.setattr(server, "SLOWEST_BODY_S", 0.1)
    response = with_client(post(pieces(1000, 0.01)))
    assert response.status_code == 408
    assert response.json() == {"error": "the picture took more than 0.1 s"}


def test_too_many_requests_are_told_to_come_again(
    with_client: WithClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More pictures at once than can wait are refused for now; the others are answered."""
    monkeypatch.setattr(server, "MOST_DECODED", 3)

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = (client.post("/predict", content=PNG) for _ in range(12))
        together = await asyncio.gather(*asked)
        return [*together, await client.post("/predict", content=PNG)]

    *together, after = with_client(ask)
    refused = [each for each in together if each.status_code == 503]
    assert 0 < len(refused) <= 9
    assert {each.headers["retry-after"] for each in refused} == {"1"}
    assert {each.status_code for each in together} == {200, 503}
    assert after.status_code == 200


def test_a_full_queue_is_told_to_come_again(
    with_client: WithClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the queue of the models is full, the request is refused for now."""
    monkeypatch.setattr("pipeline.answers.batching.LONGEST_QUEUE", 1)

    async def ask(client: httpx.AsyncClient) -> set[int]:
        asked = (client.post("/predict", content=PNG) for _ in range(40))
        return {each.status_code for each in await asyncio.gather(*asked)}

    assert with_client(ask) <= {200, 503}


@pytest.fixture
def malformed() -> Iterator[bytes]:
    """Yield pictures with damaged bytes, and noise."""

    def make() -> Iterator[bytes]:
        random = np.random.default_rng(3)
        kinds = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
        good = [
            np.frombuffer(encode(draw_two(60).convert("RGB"), kind), np.uint8) for kind in kinds
        ]
        for number in range(300):
            content = good[number % len(good)].copy()
            places = random.integers(0, len(content), 5)
            content[places] = random.integers(0, 256, 5)
            yield content.tobytes()[: int(random.integers(1, len(content) + 1))]
            yield random.bytes(int(random.integers(1, 200)))

    return make()


def test_malformed_pictures_by_the_hundred_leave_it_answering(
    with_client: WithClient, malformed: Iterator[bytes]
) -> None:
    """Six hundred damaged pictures and bits of noise are answered or refused, and it goes on."""

    async def ask(client: httpx.AsyncClient) -> tuple[set[int], int]:
        statuses = {(await client.post("/predict", content=each)).status_code for each in malformed}
        return statuses, (await client.post("/predict", content=PNG)).status_code

    statuses, after = with_client(ask)
    assert 422 in statuses
    assert statuses <= {200, 422}
    assert after == 200


def test_sixteen_bits_are_answered(with_client: WithClient) -> None:
    """A picture of 16 bits gets the answer of the same one with 8."""
    deep = Image.fromarray(np.asarray(draw_two()).astype(np.uint16) * 257)
    first, second = with_client(post(PNG)).json(), with_client(post(encode(deep))).json()
    np.testing.assert_array_equal(seen(first), seen(second))


def test_only_a_post_is_a_picture(with_client: WithClient) -> None:
    """Another method than POST is refused."""
    assert with_client(get("/predict")).status_code == 405

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.answers import batching
from pipeline.answers.batching import Batcher, QueueFullError
from pipeline.answers.models import Guess, Model

T = TypeVar("T")


class Counting:
    """In the place of a model: an image's only pixel is its class, and its calls are counted.

    It fails on a pixel of 255.
    """

    def __init__(self, chunk_size: int = 8) -> None:
        self.chunk_size = chunk_size
        self.calls: list[list[int]] = []

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        pixels = images[:, 0, 0, 0].tolist()
        self.calls.append(pixels)
        if 255 in pixels:
            raise ValueError("the model failed")
        return images[:, 0, 0].astype(np.float64)

    def best(self, probabilities: NDArray[np.float64]) -> list[Guess]:
        return [Guess(str(int(probabilities[0])), 1.0)]


def image(pixel: int) -> NDArray[np.uint8]:
    return np.full((1, 1, 1), pixel, np.uint8)


def with_batcher(models: dict[str, Counting], use: Callable[[Batcher], Awaitable[T]]) -> T:
    async def main() -> T:
        async with Batcher(cast(dict[str, Model], models)) as batcher:
            return await use(batcher)

    return asyncio.run(main())


def test_requests_that_arrive_together_are_one_call() -> None:
    """Requests that arrive at once are one call of the model, and each gets its own answer."""
    net = Counting()

    async def ask(batcher: Batcher) -> list[dict[str, list[Guess]]]:
        return await asyncio.gather(*(batcher.ask(image(pixel), ["net"]) for pixel in range(6)))

    answers = with_batcher({"net": net}, ask)
    assert net.calls == [[0, 1, 2, 3, 4, 5]]
    assert [each["net"][0].name for each in answers] == ["0", "1", "2", "3", "4", "5"]


def test_a_call_has_no_more_images_than_the_smallest_model_holds() -> None:
    """More requests than the smallest model's memory holds are several calls."""
    nets = {"net": Counting(8), "small": Counting(3)}

    async def ask(batcher: Batcher) -> list[dict[str, list[Guess]]]:
        both = ["net", "small"]
        return await asyncio.gather(*(batcher.ask(image(pixel), both) for pixel in range(7)))

    answers = with_batcher(nets, ask)
    assert nets["net"].calls == nets["small"].calls == [[0, 1, 2], [3, 4, 5], [6]]
    assert [each["small"][0].name for each in answers] == [*"0123456"]


def test_each_model_sees_only_its_requests() -> None:
    """A model computes nothing for requests that ask for another variant."""
    nets = {"net": Counting(), "other": Counting()}

    async def ask(batcher: Batcher) -> list[dict[str, list[Guess]]]:
        asked = [["net"], ["other"], ["net", "other"]]
        return await asyncio.gather(
            *(batcher.ask(image(pixel), each) for pixel, each in enumerate(asked))
        )

    answers = with_batcher(nets, ask)
    assert nets["net"].calls == [[0, 2]]
    assert nets["other"].calls == [[1, 2]]
    assert [sorted(each) for each in answers] == [["net"], ["other"], ["net", "other"]]


def test_requests_apart_are_answered_at_once() -> None:
    """A request alone does not wait for others, but for two milliseconds."""
    net = Counting()

    async def ask(batcher: Batcher) -> float:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for pixel in range(10):
            await batcher.ask(image(pixel), ["net"])
        return loop.time() - begin

    assert with_batcher({"net": net}, ask) < 1
    assert len(net.calls) == 10


def test_a_full_queue_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the longest queue waits already, another request is refused; the others are answered."""
    monkeypatch.setattr(batching, "LONGEST_QUEUE", 4)

    async def ask(batcher: Batcher) -> list[object]:
        asked = (batcher.ask(image(pixel), ["net"]) for pixel in range(6))
        return list(await asyncio.gather(*asked, return_exceptions=True))

    answers = with_batcher({"net": Counting()}, ask)
    assert [isinstance(each, QueueFullError) for each in answers] == [False] * 4 + [True] * 2


def test_an_error_reaches_each_request_and_the_next_are_answered() -> None:
    """If the model fails, each of its requests gets the error, and the next ones an answer."""

    async def ask(batcher: Batcher) -> list[object]:
        asked = (batcher.ask(image(pixel), ["net"]) for pixel in (1, 255, 2))
        failed = await asyncio.gather(*asked, return_exceptions=True)
        assert batcher.is_working
        return [*failed, await batcher.ask(image(7), ["net"])]

    *failed, answered = with_batcher({"net": Counting()}, ask)
    assert [str(each) for each in failed] == ["the model failed"] * 3
    assert answered == {"net": [Guess("7", 1.0)]}


def test_a_client_that_has_gone_does_not_harm_the_others() -> None:
    """A request that is given up does not keep those beside it from their answers."""

    async def ask(batcher: Batcher) -> dict[str, list[Guess]]:
        gone = asyncio.create_task(batcher.ask(image(1), ["net"]))
        stays = asyncio.create_task(batcher.ask(image(2), ["net"]))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await stays)["net"][0].name == "2"
        return await batcher.ask(image(3), ["net"])

    assert with_batcher({"net": Counting()}, ask)["net"][0].name == "3"


def test_it_ends_with_its_block() -> None:
    """After the end of its block a batcher works no more."""

    async def ask(batcher: Batcher) -> Batcher:
        assert batcher.is_working
        return batcher

    assert not with_batcher({"net": Counting()}, ask).is_working

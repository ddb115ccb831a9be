"""Requests answered together: what arrives within two milliseconds is one batch."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.answers.models import Guess, Model

WAIT_S = 0.002
LONGEST_QUEUE = 256

Answers = dict[str, list[Guess]]  # by variant


class QueueFullError(Exception):
    """So many requests wait that another one would only wait in vain."""


class Request(NamedTuple):
    """An image, the variants that are asked about it, and where their answers go."""

    image: NDArray[np.uint8]
    variants: Sequence[str]
    answers: asyncio.Future[Answers]


class Batcher:
    """Answers requests with models, all that wait at once, in a thread of its own.

    Parameters
    ----------
    models : mapping of str to Model
        By variant.
    """

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = models
        self.largest = min(model.chunk_size for model in models.values())
        self.queue: asyncio.Queue[Request] = asyncio.Queue(LONGEST_QUEUE)
        self.thread = ThreadPoolExecutor(1, "models")

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        self.thread.shutdown()

    @property
    def is_working(self) -> bool:
        """Whether requests are being answered."""
        return not self.task.done()

    async def ask(self, image: NDArray[np.uint8], variants: Sequence[str]) -> Answers:
        """Return the best guesses of some variants for an image (height, width, channels).

        Raises
        ------
        QueueFullError
            If `LONGEST_QUEUE` requests wait already.
        """
        answers: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        try:
            self.queue.put_nowait(Request(image, variants, answers))
        except asyncio.QueueFull as error:
            raise QueueFullError from error
        return await answers

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            end = loop.time() + WAIT_S
            while len(batch) < self.largest:
                try:
                    left = max(0.0, end - loop.time())
                    batch.append(await asyncio.wait_for(self.queue.get(), left))
                except TimeoutError:
                    break
            try:
                answers = await loop.run_in_executor(self.thread, self._answer, batch)
            except Exception as error:
                for request in batch:
                    if not request.answers.done():
                        request.answers.set_exception(error)
                continue
            for request, answer in zip(batch, answers, strict=True):
                if not request.answers.done():  # its client may have gone
                    request.answers.set_result(answer)

    def _answer(self, batch: Sequence[Request]) -> list[Answers]:
        answers: list[Answers] = [{} for _ in batch]
        for variant, model in self.models.items():
            asked = [place for place, request in enumerate(batch) if variant in request.variants]
            if asked:
                images = np.stack([batch[place].image for place in asked])
                for place, each in zip(asked, model.probabilities(images), strict=True):
                    answers[place][variant] = model.best(each)
        return answers

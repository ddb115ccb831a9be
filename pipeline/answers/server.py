"""An HTTP server that says what is on a picture, with a page to draw one."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.requests import ClientDisconnect

from pipeline.answers.batching import Batcher, QueueFullError
from pipeline.answers.models import Model
from pipeline.answers.pictures import prepare, read_picture
from pipeline.answers.settings import Pictures
from pipeline.core.errors import PictureError
from pipeline.page.render import picture, render

SCRIPT = Path(__file__).with_name("draw.js")
MOST_BYTES = 10_000_000
MOST_PIXELS = 25_000_000
SLOWEST_BODY_S = 10.0
MOST_DECODED = 64  # pictures that are decoded, or wait for it
NAME = "the picture"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class RefusedError(Exception):
    """A request that is not answered: the status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def make_app(models: Mapping[str, Model], settings: Pictures | None, workers: int) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    models : mapping of str to Model
        By variant, all of one data set; the first one answers if none is named.
    settings : Pictures or None
        How pictures are prepared.
    workers : int
        Threads that decode and prepare pictures.
    """
    first = next(iter(models.values()))
    decoders = ThreadPoolExecutor(workers, "pictures")
    waiting = 0

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Batcher(models) as batcher:
            app.state.batcher = batcher
            yield
        decoders.shutdown(cancel_futures=True)

    app = FastAPI(
        title="alexnet-mnist", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )

    @app.middleware("http")
    async def protect(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(RefusedError)
    async def refuse(_: Request, error: RefusedError) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else {}
        return JSONResponse({"error": str(error)}, error.status, headers)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready(request: Request) -> JSONResponse:
        works: bool = request.app.state.batcher.is_working
        return JSONResponse({"status": "ready" if works else "stopped"}, 200 if works else 503)

    @app.get("/model")
    async def describe() -> dict[str, Any]:
        return {
            "dataset": first.dataset,
            "classes": first.classes,
            "image_shape": list(first.shape),
            "variants": {
                name: {
                    "parameters": each.parameters,
                    "seeds": each.seeds,
                    "temperatures": each.temperatures,
                    "precision": each.precision,
                }
                for name, each in models.items()
            },
        }

    @app.post("/predict")
    async def predict(request: Request, variant: str | None = None) -> dict[str, Any]:
        nonlocal waiting
        if variant is not None and variant not in models:
            raise RefusedError(404, f"no variant {variant!r}; there are {', '.join(models)}")
        content = await read_body(request)
        if waiting >= MOST_DECODED:
            raise RefusedError(503, "too many requests at once; try again in a second")
        waiting += 1
        try:
            image = await asyncio.get_running_loop().run_in_executor(
                decoders,
                lambda: prepare(
                    read_picture(content, NAME, MOST_PIXELS), first.shape, settings, NAME
                ),
            )
        except PictureError as error:
            raise RefusedError(422, str(error)) from error
        finally:
            waiting -= 1
        batcher: Batcher = request.app.state.batcher
        try:
            answers = await batcher.ask(image, [variant] if variant else list(models))
        except QueueFullError as error:
            raise RefusedError(503, "too many requests at once; try again in a second") from error
        return {
            "dataset": first.dataset,
            "answers": {
                name: [{"class": each.name, "confidence": each.confidence} for each in guesses]
                for name, guesses in answers.items()
            },
            "image": picture(image),
        }

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return render(
            "draw.html", variants=list(models), summary="", title=f"What is it? ({first.dataset})"
        )

    @app.get("/draw.js")
    async def script() -> FileResponse:
        return FileResponse(SCRIPT, media_type="text/javascript")

    return app


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises
    ------
    RefusedError
        If it is empty, larger than `MOST_BYTES`, or takes longer than `SLOWEST_BODY_S`.
    """
    too_large = RefusedError(413, f"a picture may have {MOST_BYTES:,} bytes at most")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MOST_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(SLOWEST_BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BYTES:
                    raise too_large
    except TimeoutError as error:
        raise RefusedError(408, f"the picture took more than {SLOWEST_BODY_S:g} s") from error
    except ClientDisconnect as error:
        raise RefusedError(400, "the connection ended before the picture did") from error
    if not body:
        raise RefusedError(400, "expected a picture as the body of the request")
    return bytes(body)

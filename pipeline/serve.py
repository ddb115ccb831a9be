"""Serve the trained variants of a data set over HTTP, with a page to draw on.

``/predict`` takes a picture as the body of a POST request, ``/model`` says which models answer, and
``/healthz`` and ``/readyz`` are for those who watch over it.
"""

import argparse
import os
import signal
import socket
from collections.abc import Sequence
from functools import partial

import uvicorn

from pipeline.answers import models
from pipeline.answers.models import Model
from pipeline.answers.server import make_app
from pipeline.core.errors import ModelError, OutputError
from pipeline.core.params import Params, nearest
from pipeline.core.stage import run_command
from pipeline.network.chunks import Evaluate

BACKLOG = 1024
LAST_ANSWERS_S = 10


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.serve", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="by default this machine alone")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dataset", metavar="NAME", help="what the models were trained on")
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", help="by default all that are trained"
    )
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> None:
    """Serve until stopped."""
    params = Params()
    dataset = models.choose_dataset(params, arguments.dataset)
    trained = models.trained_variants(dataset)
    for name in arguments.variants or ():
        if name not in trained:
            raise ModelError(f"{dataset}: has no trained {name!r}; {nearest(name, trained)}")
    settings: Evaluate = params.get("evaluate", Evaluate)
    loaded = {name: Model(dataset, name, settings) for name in arguments.variants or trained}
    app = make_app(loaded, models.pictures_of(params, dataset), os.cpu_count() or 1)
    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=LAST_ANSWERS_S, server_header=False
    )
    with open_socket(arguments.host, arguments.port) as listening:
        host, port = listening.getsockname()[:2]
        print(f"{dataset}: {', '.join(loaded)} at http://{host}:{port}", flush=True)
        # The server answers both itself, and sends itself those that came once it has ended.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        uvicorn.Server(config).run(sockets=[listening])
    print("stopped", flush=True)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises
    ------
    OutputError
        If the port is taken, or the host is not one of this machine.
    """
    try:
        return socket.create_server((host, port), backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        # Python adds the address to the reason.
        reason = str(getattr(error, "strerror", None) or error).partition(" (while ")[0]
        raise OutputError(
            f"{host}:{port} cannot be listened on ({reason}); choose another --port, or the --host "
            "of this machine"
        ) from error


if __name__ == "__main__":
    run_command(partial(main, parse_arguments()), "pipeline.serve")

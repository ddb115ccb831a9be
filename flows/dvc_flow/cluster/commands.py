"""The commands ``dvc-flow scheduler`` and ``dvc-flow worker``, which run until they are stopped."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import Nanny, Scheduler

from dvc_flow.cluster.machine import HOME
from dvc_flow.cluster.scheduler import name_for
from dvc_flow.cluster.security import security_of
from dvc_flow.errors import ClusterError, one_line
from dvc_flow.slots import GB, find_gpus

PORT = 8786
LOOPBACK = "127.0.0.1"
JOIN_S = 60  # how long a worker waits for a scheduler, at first or when it is gone
CLOSE_S = 10.0

# A stage has the environment of whoever started the worker; Dask would add variables that keep
# libraries from using several threads.
UNCHANGED: dict[str, Any] = {
    "distributed.nanny.environ": {},
    "distributed.nanny.pre-spawn-environ": {},
}


def scheduler(arguments: Sequence[str]) -> int:
    """Run a scheduler until it is stopped.

    Raises
    ------
    ClusterError
        If the port cannot be used, or TLS is needed and missing.
    """
    parser = argparse.ArgumentParser(
        prog="dvc-flow scheduler", description="Let coordinators and workers meet, until stopped."
    )
    parser.add_argument("--host", default=LOOPBACK, help=f"where to listen (default: {LOOPBACK})")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    parser.add_argument(
        "--worker-ttl", type=int, default=300, metavar="SECONDS",
        help="after how long a worker that does not answer counts as dead (default: 300)",
    )  # fmt: skip
    _add_tls(parser)
    given = parser.parse_args(arguments)
    security = security_of(given.host, given.tls)

    async def serve() -> None:
        async with Scheduler(
            host=given.host, port=given.port, security=security, dashboard=False,
            protocol="tls" if security else "tcp", worker_ttl=given.worker_ttl,
            allowed_failures=0,  # the coordinator decides what follows a worker's death
        ) as started:  # fmt: skip
            print(f"scheduler at {started.address}; stop it with Ctrl-C", flush=True)
            await _until_stopped(started)

    _run(serve(), f"{given.host}:{given.port}")
    return 0


def worker(arguments: Sequence[str]) -> int:
    """Run stages for the coordinators at a scheduler, until stopped.

    Raises
    ------
    ClusterError
        If the scheduler does not answer, or TLS is needed and missing.
    """
    parser = argparse.ArgumentParser(
        prog="dvc-flow worker", description="Run stages for coordinators, until stopped."
    )
    parser.add_argument("address", help="the scheduler's, such as tls://gpu-box:8786")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="stages at a time (default: 1)")
    parser.add_argument("--gpus", type=int, help="how many stages may use; all by default")
    parser.add_argument("--memory-gb", type=float, help="of this machine by default")
    parser.add_argument("--name", help="shown where a stage ran; by default the machine's name")
    parser.add_argument(
        "--home", type=Path, default=Path("~/.cache/dvc-flow"),
        help="a folder for workspaces and DVC's cache (default: ~/.cache/dvc-flow)",
    )  # fmt: skip
    _add_tls(parser)
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        parser.error(f"--jobs: expected at least 1, received {given.jobs}")
    security = security_of(given.address, given.tls)
    os.environ[HOME] = str(given.home.expanduser().resolve())
    _put_own_programs_first()
    gpus = len(find_gpus())
    resources = {
        "SLOT": float(given.jobs),
        "GPU": float(gpus if given.gpus is None else min(given.gpus, gpus)),
        "MEMORY": given.memory_gb or psutil.virtual_memory().total / GB,
    }
    name = given.name or socket.gethostname()

    async def serve() -> None:
        try:
            stopped = False
            while not stopped:
                async with Nanny(
                    given.address, nthreads=given.jobs, resources=resources, memory_limit=0,
                    name=name_for(name, os.getpid()), security=security, death_timeout=JOIN_S,
                    host=LOOPBACK if security is None else None, silence_logs=logging.ERROR,
                    protocol="tls" if security else "tcp",
                    local_directory=os.environ[HOME], dashboard=False,
                ) as started:  # fmt: skip
                    print(f"working for {given.address}; stop with Ctrl-C", flush=True)
                    stopped = await _until_stopped(started)
        except TimeoutError as error:
            raise ClusterError(f"{given.address}: no scheduler answered for {JOIN_S} s") from error

    # Dask gives up a connection after 30 seconds, however long it may take a worker to join.
    patience = {"distributed.comm.timeouts.connect": f"{2 * JOIN_S} s"}
    with dask.config.set(UNCHANGED | patience):
        _run(serve(), given.address)
    return 0


def _add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tls", type=Path, metavar="FOLDER", help="with ca.pem, cert.pem and key.pem"
    )


def _put_own_programs_first() -> None:
    """Let the stages' ``python`` be the one whose packages coordinators compare with theirs."""
    programs = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if path[0] != programs:
        os.environ["PATH"] = os.pathsep.join([programs, *path])


async def _until_stopped(server: Any) -> bool:
    """Wait for SIGINT or SIGTERM, or until the server ends by itself; close it.

    Returns
    -------
    bool
        Whether there was a signal.
    """
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stopped.set)
    waits = [asyncio.ensure_future(stopped.wait()), asyncio.ensure_future(server.finished())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for each in waits:
        each.cancel()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(signum)
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(server.close(), CLOSE_S)
    return stopped.is_set()


def _run(serving: Any, what: str) -> None:
    logging.getLogger("distributed").setLevel(logging.ERROR)
    try:
        asyncio.run(serving)
    except ClusterError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise ClusterError(f"{what}: {one_line(error)}") from error

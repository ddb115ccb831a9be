"""Prefect's server: a temporary one for a run without any, and its errors in one line."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import prefect
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, get_current_settings
from prefect.settings.context import temporary_settings

from dvc_flow.errors import ServerError, one_line
from dvc_flow.process import WARDEN, end

DRAIN_S = 10
START_S = 120.0  # Prefect's own 20 are too few on a busy machine
POLL_S = 0.1
ERROR_LINE = re.compile(r"[\w.]+(Error|Exception): ")
LOOPBACK = "127.0.0.1,localhost,::1"


def spare_loopback() -> None:
    """Keep requests to this machine from going through a proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "")
        if known != "*":
            os.environ[name] = f"{known},{LOOPBACK}" if known else LOOPBACK


@contextmanager
def any_server() -> Iterator[None]:
    """Use the server that is configured, or else a temporary one, while the block runs.

    The temporary server ends with this process, however that ends.
    Its database is the user's own, so what ran can be looked at later.

    Raises
    ------
    ServerError
        If it does not start; with what it says.
    """
    spare_loopback()
    if PREFECT_API_URL.value():
        yield
        return
    with tempfile.TemporaryFile() as log, _started(log.fileno()) as (process, port):
        url = f"http://127.0.0.1:{port}/api"
        deadline = time.monotonic() + START_S
        while not _is_healthy(url):
            if process.poll() is not None:
                log.seek(0)
                raise ServerError(_reason(log.read().decode(errors="replace")))
            if time.monotonic() > deadline:
                raise ServerError(
                    f"Prefect: its temporary server did not answer within {START_S:g} s; start one "
                    "with prefect server start, and set PREFECT_API_URL"
                )
            time.sleep(POLL_S)
        with temporary_settings({PREFECT_API_URL: url}):
            yield
            APILogWorker.drain_all(timeout=DRAIN_S)  # before the server ends


@contextmanager
def _started(log: int) -> "Iterator[tuple[subprocess.Popen[bytes], int]]":
    """Start a server, which ends with the block, or with this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-P", "-m", "uvicorn", "--factory"),
        *("--app-dir", str(Path(prefect.__file__).parent)),
        *("prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port)),
        *("--log-level", "error", "--lifespan", "on"),
    ]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    # As Prefect starts its own; services that only a lasting server needs stay off.
    own = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "0",
        # It says why it does not start, whatever this process shows of its own log.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "ERROR",
    }
    process = WARDEN.start(
        command, folder=str(Path.cwd()), environment={**os.environ, **settings, **own}, output=log
    )
    try:
        yield process, port
    finally:
        end(process)


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _reason(log: str) -> str:
    """Return why the server ended: the last error of a traceback, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if ERROR_LINE.match(line)]
    reason = (told or lines or ["it says nothing"])[-1]
    home = get_current_settings().home
    return (
        f"Prefect: its temporary server does not start: {reason}; its files are in {home}: if they "
        "cannot be written, or are of another version, set PREFECT_HOME to a new folder"
    )


def explain(error: Exception) -> str:
    """Return what is wrong with the server, with a remedy, in one line."""
    where = PREFECT_API_URL.value()
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if status in (401, 403):
        known = (
            "PREFECT_API_KEY to a valid key"
            if PREFECT_API_KEY.value()
            else "PREFECT_API_AUTH_STRING to the server's authentication string"
        )
        return f"Prefect: {where} rejects our credentials ({status}); set {known}"
    told = one_line(error)
    at = f" ({where})" if where and where not in told else ""
    remedy = "start that server, or unset PREFECT_API_URL for a temporary one"
    if not where:
        return f"Prefect: {told}"
    return f"Prefect: {told}{at}; {remedy}"

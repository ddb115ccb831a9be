"""The services that a deployed flow runs on, started and killed for real."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import requests

from tests.browser import require_program
from tests.helpers import environment

START_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Any, seconds: float, what: str, every: float = 0.5) -> Any:
    """Return the first true value of a condition; fail when time is up."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(every)
    return value


class Service:
    """A process in a session of its own, with a log."""

    def __init__(self, folder: Path, *command: str, **env: str) -> None:
        self.command, self.folder = command, folder
        self.environment = {k: v for k, v in environment(**env).items() if k != "PYTHONPATH"}
        self.log = folder / f"{command[1]}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return self

    def kill(self) -> None:
        """Kill the process itself, as the kernel's memory killer would; its children live on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        """Stop the process as a service manager does: asked, then killed; its children live on."""
        assert self.process is not None
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.kill()

    def stop(self) -> None:
        assert self.process is not None
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Server(Service):
    """A Prefect server; `leads_there` is the environment of its clients."""

    def __init__(self, home: Path, *, auth: str = "", **env: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self.page = f"http://127.0.0.1:{port}"
        self.auth = auth
        self.leads_there = {"PREFECT_HOME": str(home), "PREFECT_API_URL": self.url}
        own = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_UI_API_URL": self.url}
        if auth:
            self.leads_there["PREFECT_API_AUTH_STRING"] = auth
            own["PREFECT_SERVER_API_AUTH_STRING"] = auth
        start = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        super().__init__(home, *start, PREFECT_HOME=str(home), **own, **env)

    def start(self) -> Self:
        super().start()
        wait_until(self.answers, START_S, f"the server, see {self.log}")
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=2).close()  # noqa: S310
        except urllib.error.HTTPError:
            return True  # it answers, and asks who we are
        except OSError:
            return False
        return True

    def ask(self, path: str, **body: Any) -> Any:
        """Return what the server answers to a POST."""
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: dict[str, Any]) -> Any:
        (answer,) = wait_until(
            lambda: self._answer(method, path, body), 60, f"an answer to {path}", every=1
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def _answer(self, method: str, path: str, body: dict[str, Any]) -> list[requests.Response]:
        """Return the server's answer; none if it is busy, when Prefect's client tries again too."""
        user, _, password = self.auth.partition(":")
        answer = requests.request(
            method, f"{self.url}/{path}", json=body, timeout=30,
            auth=(user, password) if self.auth else None,
        )  # fmt: skip
        return [answer] if answer.status_code != 503 else []

    def runs(self, **filters: Any) -> list[dict[str, Any]]:
        """Return flow runs, the newest first."""
        found: list[dict[str, Any]] = self.ask(
            "flow_runs/filter", sort="EXPECTED_START_TIME_DESC", flow_runs=filters
        )
        return found

    def deployment(self, name: str) -> dict[str, Any]:
        return next(each for each in self.ask("deployments/filter") if each["name"] == name)

    def pause(self, deployment_id: str) -> None:
        self._request("PATCH", f"deployments/{deployment_id}", {"paused": True})

    def delete(self, path: str) -> None:
        self._request("DELETE", path, {})

    def cancel(self, run_id: str) -> None:
        """Cancel a run as the page's button does."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.ask(f"flow_runs/{run_id}/set_state", state=state)

    def state(self, run_id: str) -> str:
        """Return the name of a run's state."""
        return str(self.runs(id={"any_": [run_id]})[0]["state"]["name"])


def worker(folder: Path, server: Server, **env: str) -> Service:
    """Return a worker of the project's pool, which is yet to be started."""
    start = ("prefect", "worker", "start", "--pool", "alexnet-mnist")
    return Service(folder, *start, **server.leads_there, **env)


@contextmanager
def postgres() -> Iterator[str]:
    """Start PostgreSQL with an empty database; yield its URL."""
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    programs = Path(require_program(*map(str, newest[-1:]), "pg_ctl")).parent
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    # PostgreSQL refuses to run as root.
    as_user = ["setpriv", "--reuid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")
    port = free_port()

    def pg(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs / program), "-D", str(folder / "data"), *arguments]
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    pg("initdb", "--auth=trust", "--username=prefect", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    pg("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
    try:
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        pg("pg_ctl", "stop", "-m", "immediate")
        shutil.rmtree(folder)


def processes_below(folder: str) -> list[psutil.Process]:
    """Return the living processes that work below a folder whose path contains `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if folder in process.cwd() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def command_of(process: psutil.Process) -> list[str]:
    """Return a process's command line; an empty one once it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []

"""Shared resources: the machine's GPUs, memory, and the workspace.

GPUs and the workspace are held by file locks, which the kernel releases when their holder dies, so
no slot can leak. Memory is counted in the flow's process.
"""

import fcntl
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from dvc_flow.environment import CALLERS
from dvc_flow.errors import FlowError, StageStopped, WorkspaceBusy
from dvc_flow.stop import Stop

GB = 10**9
POLL_S = 0.5
GPU_LOCKS = Path(tempfile.gettempdir()) / f"dvc-flow-gpus-{os.getuid()}"
WORKSPACE_LOCK = "flow.lock"


def find_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, in the form of CUDA_VISIBLE_DEVICES."""
    visible = CALLERS.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(gpu for gpu in visible.split(",") if gpu and gpu != "-1")
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(listed.stdout.split())


def try_lock(path: Path) -> int | None:
    """Lock a file, which is created if it is missing.

    Returns
    -------
    int or None
        A descriptor that holds the lock until it is closed or its process dies; None if another
        process holds it.

    Raises
    ------
    FlowError
        If the file cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise FlowError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def hold_workspace(folder: Path) -> Iterator[None]:
    """Hold a workspace exclusively.

    Parameters
    ----------
    folder : Path
        DVC's own for temporary files.

    Raises
    ------
    WorkspaceBusy
        If another flow holds it.
    """
    path = folder / WORKSPACE_LOCK
    descriptor = try_lock(path)
    if descriptor is None:
        holder = path.read_text().strip() or "unknown"
        raise WorkspaceBusy(
            f"{folder.parents[1]}: another flow runs here (process {holder}); wait for it, or "
            "stop it"
        )
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


class Resources:
    """Reserves GPUs and memory for stages, waiting until enough are free.

    Parameters
    ----------
    gpus : tuple of str
        From `find_gpus`; if there are none, a stage that asks for one runs on the CPU.
    memory_gb : float, optional
        The total that concurrent stages may reserve; by default the machine's memory.
    """

    def __init__(self, gpus: tuple[str, ...] | None = None, memory_gb: float | None = None) -> None:
        self.gpus = find_gpus() if gpus is None else gpus
        self.memory_gb = psutil.virtual_memory().total / GB if memory_gb is None else memory_gb
        self.free_gb = self.memory_gb
        self.changed = threading.Condition()

    @contextmanager
    def hold(
        self, gpus: int, memory_gb: float, stop: Stop
    ) -> Iterator[tuple[dict[str, str], list[int]]]:
        """Reserve GPUs and memory, waiting until they are free.

        A stage that asks for more memory than there is runs alone.

        Yields
        ------
        environment : dict
            ``CUDA_VISIBLE_DEVICES`` for a stage that asks for GPUs: its own.
        held : list of int
            Descriptors of the GPUs' locks, for the stage's command to hold too.

        Raises
        ------
        StageStopped
            If `stop` was set while waiting.
        """
        wanted = min(gpus, len(self.gpus))
        with self._hold_memory(min(memory_gb, self.memory_gb), stop), ExitStack() as stack:
            if not wanted:
                yield {}, []
                return
            # One stage at a time collects its GPUs; two would wait for each other's.
            with _hold_one_of(["collecting"], stop):
                held = [stack.enter_context(_hold_one_of(self.gpus, stop)) for _ in range(wanted)]
            yield {"CUDA_VISIBLE_DEVICES": ",".join(gpu for gpu, _ in held)}, [fd for _, fd in held]

    @contextmanager
    def _hold_memory(self, wanted_gb: float, stop: Stop) -> Iterator[None]:
        with self.changed:
            while self.free_gb < wanted_gb:
                if stop.is_set():
                    raise StageStopped("stopped while it waited for memory")
                self.changed.wait(POLL_S)
            self.free_gb -= wanted_gb
        try:
            yield
        finally:
            with self.changed:
                self.free_gb += wanted_gb
                self.changed.notify_all()


@contextmanager
def _hold_one_of(names: Sequence[str], stop: Stop) -> Iterator[tuple[str, int]]:
    """Hold the first lock of the machine's GPUs that is free; yield its name and descriptor."""
    GPU_LOCKS.mkdir(mode=0o700, exist_ok=True)
    while True:
        for name in names:
            descriptor = try_lock(GPU_LOCKS / name.replace("/", "_"))
            if descriptor is not None:
                try:
                    yield name, descriptor
                finally:
                    os.close(descriptor)
                return
        if stop.wait(POLL_S):
            raise StageStopped("stopped while it waited for a GPU")

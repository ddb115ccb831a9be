"""What stages share: GPUs of the machine, memory of the flow, and the workspace itself.

A GPU and a workspace are held by a lock on a file, which the kernel drops when its holder dies, so
that no slot can leak. Memory is counted in the flow's own process, and goes with it.
"""

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from flows.errors import StageStopped, WorkspaceBusy
from pipeline.files import try_lock

GB = 10**9
POLL_S = 0.5
GPU_LOCKS = Path(tempfile.gettempdir()) / f"alexnet-mnist-gpus-{os.getuid()}"
WORKSPACE_LOCK = Path(".dvc/tmp/flow.lock")


def find_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
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


@contextmanager
def hold_workspace(root: Path) -> Iterator[None]:
    """Hold a workspace, so that two flows never work in one.

    Raises
    ------
    WorkspaceBusy
        If another flow holds it.
    """
    path = root / WORKSPACE_LOCK
    descriptor = try_lock(path)
    if descriptor is None:
        holder = path.read_text().strip() or "unknown"
        raise WorkspaceBusy(
            f"{root}: another flow runs here (process {holder}); wait for it, or stop it"
        )
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


class Resources:
    """Hands out GPUs and memory to stages, and waits until there are enough.

    Parameters
    ----------
    gpus : tuple of str
        As `find_gpus` names them; with none, a stage that asks for one runs on the CPU.
    memory_gb : float, optional
        How much the stages may ask for together; the machine's memory by default.
    """

    def __init__(self, gpus: tuple[str, ...] | None = None, memory_gb: float | None = None) -> None:
        self.gpus = find_gpus() if gpus is None else gpus
        self.memory_gb = psutil.virtual_memory().total / GB if memory_gb is None else memory_gb
        self.free_gb = self.memory_gb
        self.changed = threading.Condition()

    @contextmanager
    def hold(
        self, gpus: int, memory_gb: float, stop: threading.Event
    ) -> Iterator[tuple[dict[str, str], list[int]]]:
        """Wait for GPUs and memory, and hold them.

        A stage that asks for more memory than there is runs alone.

        Yields
        ------
        environment : dict
            ``CUDA_VISIBLE_DEVICES`` for the stage: its own GPUs, or none.
        held : list of int
            Descriptors of the GPUs' locks, for the stage's supervisor to hold too.

        Raises
        ------
        StageStopped
            If `stop` was set while waiting.
        """
        with ExitStack() as stack:
            stack.enter_context(self._hold_memory(min(memory_gb, self.memory_gb), stop))
            wanted = min(gpus, len(self.gpus))
            files = [stack.enter_context(self._hold_gpu(stop)) for _ in range(wanted)]
            own = ",".join(gpu for gpu, _ in files)
            yield {"CUDA_VISIBLE_DEVICES": own} if self.gpus else {}, [fd for _, fd in files]

    @contextmanager
    def _hold_memory(self, wanted_gb: float, stop: threading.Event) -> Iterator[None]:
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
    def _hold_gpu(self, stop: threading.Event) -> Iterator[tuple[str, int]]:
        GPU_LOCKS.mkdir(mode=0o700, exist_ok=True)
        while True:
            for gpu in self.gpus:
                descriptor = try_lock(GPU_LOCKS / gpu.replace("/", "_"))
                if descriptor is not None:
                    try:
                        yield gpu, descriptor
                    finally:
                        os.close(descriptor)
                    return
            if stop.wait(POLL_S):
                raise StageStopped("stopped while it waited for a GPU")

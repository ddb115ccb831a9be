"""How the stages of a run are asked to end."""

import signal
import threading


class Stop:
    """Asks all stages of a run to end, once it is set.

    Attributes
    ----------
    signal : int
        What the stages get: 0 while none is asked to end; SIGINT, for which they may take their
        time, as after Ctrl-C in a terminal; or SIGTERM, after which they are killed.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.event = threading.Event()

    def set(self, signum: int = signal.SIGTERM) -> None:
        """Ask; SIGTERM after SIGINT is for those that have not ended."""
        self.signal = max(self.signal, int(signum), key=(0, signal.SIGINT, signal.SIGTERM).index)
        self.event.set()

    def is_set(self) -> bool:
        """Tell whether the stages were asked to end."""
        return self.event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for a time, or until the stages are asked to end; tell whether they were."""
        return self.event.wait(seconds)

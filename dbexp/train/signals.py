"""SIGINT and SIGTERM while lanes train: the step in progress is finished and saved first."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Signals:
    """Inside the block the first SIGINT or SIGTERM is noted; a second SIGINT interrupts at once.

    Outside the main thread Python allows no handlers, and signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._message: threading.Thread | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if self._message is not None:
            self._message.join()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        # Python calls this between any two instructions, also halfway through a line that the loop itself logs, which
        # no second one may enter; a thread waits for its turn.
        message = ("train: %s: finishing this step and saving", signal.Signals(signum).name)
        self._message = threading.Thread(target=log.warning, args=message)
        self._message.start()

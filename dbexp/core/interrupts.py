"""SIGTERM wherever lanes do not train: it ends a command as Ctrl-C does, with an exit status of its own.

A scheduler, a container and `timeout` send it some seconds before SIGKILL: enough to write down what there is, and to
take away what is half done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SOON_SECONDS = 0.05


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Whoever tidies up after Ctrl-C does so after this one too."""

    def __init__(self) -> None:
        super().__init__("SIGTERM")


def signum_of(stop: KeyboardInterrupt) -> signal.Signals:
    """The signal behind an exception."""
    return signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT


@contextlib.contextmanager
def sigterm_raised() -> Iterator[None]:
    """Inside the block SIGTERM raises `Terminated`, once: whoever tidies up is not disturbed by a second one.

    Python drops exceptions that are raised in a destructor or a callback of the garbage collector; one of a signal is
    raised again a moment later. Outside of the main thread, and where SIGTERM is ignored, nothing changes.
    """
    outside = threading.current_thread() is not threading.main_thread()
    if outside or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    raised, unraisable = False, sys.unraisablehook

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise Terminated

    def dropped(args: sys.UnraisableHookArgs) -> None:
        nonlocal raised
        if not isinstance(args.exc_value, KeyboardInterrupt):
            unraisable(args)
            return
        raised = False
        threading.Timer(_SOON_SECONDS, os.kill, (os.getpid(), signum_of(args.exc_value))).start()

    before = signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of the block, which must be short; not so outside of the main thread."""
    received: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            handlers[signum] = signal.signal(signum, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    if received:
        signal.raise_signal(received[0])

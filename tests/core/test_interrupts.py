"""SIGTERM outside of training."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from dbexp.core.interrupts import Terminated, postponed, signum_of, sigterm_raised


def test_it_comes_once_and_as_what_ctrl_c_is() -> None:
    before, tidied = signal.getsignal(signal.SIGTERM), False
    with pytest.raises(KeyboardInterrupt) as caught, sigterm_raised():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # whoever sent it is impatient
            tidied = True
    assert tidied and signum_of(caught.value) == signal.SIGTERM
    assert signum_of(KeyboardInterrupt()) == signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_destructor_does_not_swallow_it(
    signum: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tidy:
        def __del__(self) -> None:
            signal.raise_signal(signum)

    tidy = Tidy()
    monkeypatch.setattr(signal, "default_int_handler", signal.default_int_handler)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught, sigterm_raised():
            del tidy
            time.sleep(10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert signum_of(caught.value) == signum and capsys.readouterr().err == ""


def test_where_it_is_ignored_it_stays_so() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with sigterm_raised():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("context", [sigterm_raised, postponed])
def test_outside_of_the_main_thread_nothing_changes(context: type) -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def look() -> None:
        with context():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


def test_what_must_not_be_cut_in_two_ends_first() -> None:
    done = False
    with pytest.raises(Terminated), sigterm_raised(), postponed():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done

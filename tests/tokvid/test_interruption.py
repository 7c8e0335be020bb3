"""Ctrl-C waits where it is told to, and nowhere else."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from tokvid.interruption import deferred_interrupt


def test_the_first_ctrl_c_is_remembered_and_the_second_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_handler_comes_back_and_the_answer_stays() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as interrupted:
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before and interrupted()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with deferred_interrupt() as interrupted:
        assert not interrupted(), "an earlier block's Ctrl-C is not this one's"


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert not interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_changes_nothing() -> None:
    seen: list[object] = []

    def work() -> None:
        with deferred_interrupt() as interrupted:
            seen.extend([signal.getsignal(signal.SIGINT), interrupted()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT), False]


def test_the_signal_of_schedulers_waits_however_often_it_comes() -> None:
    program = (
        "import os, signal\n"
        "from tokvid.interruption import deferred_interrupt\n"
        "with deferred_interrupt() as interrupted:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(interrupted(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('not here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    # A launcher passes on what a scheduler has sent to all: the second must not end what the first has asked to save.
    assert done.stdout == "True\nstill here\n" and done.returncode == -signal.SIGTERM


def test_both_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with deferred_interrupt():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

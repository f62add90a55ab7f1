"""Signals to a process that trains; whole runs are tested in tests/test_signals.py."""

import os
import signal

import pytest

from projects_deformable_detr.training.interruption import StopSignal


def test_the_first_signal_is_recorded() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert stop.broadcast() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.broadcast() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("signals", "status"), [([signal.SIGINT] * 2, 130), ([signal.SIGINT, signal.SIGTERM], 143)])
def test_a_second_signal_ends_the_process(signals: list[int], status: int) -> None:
    if (child := os.fork()) == 0:
        with StopSignal():
            for signum in signals:
                os.kill(os.getpid(), signum)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_workers_of_data_loaders_ignore_the_terminal(signum: int, status: int) -> None:
    """They inherit the handlers; the process that started them ends them."""
    with StopSignal() as stop:
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signum)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
        assert stop.signum is None

"""Signals to a process that trains; whole runs are tested in tests/test_signals.py."""

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from projects_deformable_detr.errors import Interrupted
from projects_deformable_detr.training.interruption import StopSignal, shield_worker, stop_evaluation


def test_the_first_signal_is_recorded() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert stop.reduce() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reduce() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("signals", "status"), [([signal.SIGINT] * 2, 130), ([signal.SIGINT, signal.SIGTERM], 143)])
def test_a_second_signal_ends_the_process(signals: list[int], status: int) -> None:
    if (child := os.fork()) == 0:
        with StopSignal():
            for signum in signals:
                os.kill(os.getpid(), signum)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


def test_a_second_signal_kills_processes_that_ignore_the_first(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        process.start()
        (tmp_path / "pid").write_text(str(process.pid))
        with StopSignal([process]):
            os.kill(os.getpid(), signal.SIGTERM)
            (tmp_path / "alive").write_text(str(process.is_alive()))
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert (tmp_path / "alive").read_text() == "True"
    assert wait_for_end(int((tmp_path / "pid").read_text()))


def wait_for_end(pid: int) -> bool:
    """Returns whether a process that may be a zombie ends within 20 seconds."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_workers_of_data_loaders_ignore_the_terminal(signum: int, status: int) -> None:
    """They inherit the handlers; the process that started them ends them."""
    with StopSignal() as stop:
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signum)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
        assert stop.signum is None


def test_a_shielded_worker_ends_with_a_signal_of_its_parent_only() -> None:
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        shield_worker()
        os.write(write, b"r")
        time.sleep(60)
        os._exit(1)
    os.read(read, 1)
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(child)], check=True)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_evaluation_stops_in_an_active_context_only() -> None:
    stop_evaluation(at_end=True)
    with StopSignal():
        stop_evaluation(at_end=True)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop_evaluation()
    stop_evaluation()

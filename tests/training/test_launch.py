"""Launch of training processes: result of rank 0, errors, environment, and threads at exit."""

import atexit
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessException

from projects_deformable_detr.errors import Interrupted, UserError
from projects_deformable_detr.training.interruption import StopSignal
from projects_deformable_detr.training.launch import launch, parse_address


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_threads(folder):
    tasks = Path("/proc/self/task").iterdir()
    names = sorted((task / "comm").read_text().strip() for task in tasks)
    Path(folder, os.environ["RANK"]).write_text("\n".join(names))


def reduce(folder, failing_rank=None, error=UserError):
    """Sums rank + 1 over all processes, in a second process group."""
    atexit.register(write_threads, folder)
    distributed.init_process_group("gloo")
    rank, group = distributed.get_rank(), distributed.new_group()
    total = torch.tensor(rank + 1)
    distributed.all_reduce(total, group=group)
    if rank == failing_rank:
        raise error(f"message of rank {rank}")
    return rank, int(total), multiprocessing.get_start_method()


def test_a_single_process_runs_in_the_caller(tmp_path):
    assert launch(os.getpid, 1, 1, 0, "auto") == os.getpid()


def test_spawned_processes(tmp_path):
    """Result of rank 0, start method of workers, and no thread of gloo at exit, which might abort the process."""
    assert launch(reduce, 2, 1, 0, "auto", str(tmp_path)) == (0, 3, multiprocessing.get_start_method())
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are listed on Linux only")
    for rank in "01":
        assert not [name for name in (tmp_path / rank).read_text().split() if "gloo" in name]


@pytest.mark.usefixtures("forkserver")
def test_a_user_error_is_forwarded_as_its_message(tmp_path):
    with pytest.raises(UserError) as caught:
        launch(reduce, 2, 1, 0, "auto", str(tmp_path), 1)
    assert str(caught.value) == "message of rank 1"


@pytest.mark.usefixtures("forkserver")
def test_other_errors_keep_their_traceback(tmp_path):
    with pytest.raises(ProcessException, match="(?s)in reduce.*LookupError: message of rank 0"):
        launch(reduce, 2, 1, 0, "auto", str(tmp_path), 0, LookupError)


def stop_after_signal(signaled_rank):
    distributed.init_process_group("gloo")
    with StopSignal() as stop:
        if distributed.get_rank() == signaled_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        if signum := stop.reduce():
            raise Interrupted(signum)


@pytest.mark.usefixtures("forkserver")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_a_child_process_stops_all(rank):
    with pytest.raises(Interrupted) as caught:
        launch(stop_after_signal, 2, 1, 0, "auto", rank)
    assert caught.value.signum == signal.SIGTERM


def lose_connection():
    distributed.init_process_group("gloo")
    if distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.all_reduce(torch.zeros(1))


@pytest.mark.usefixtures("forkserver")
def test_a_machine_whose_connection_is_lost(tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    with ThreadPoolExecutor() as pool:
        first, second = [pool.submit(launch, lose_connection, 1, 2, rank, url) for rank in range(2)]
    with pytest.raises(UserError, match=r"no connection to another process, .* with --resume"):
        first.result()
    with pytest.raises(ProcessException, match="SIGKILL"):
        second.result()


@pytest.mark.parametrize(
    ("kind", "message", "is_lost"),
    [
        (
            distributed.DistBackendError,
            "NCCL error in: f.cpp:7, remote process exited or there was a network error",
            True,
        ),
        (distributed.DistBackendError, "ncclRemoteError: A call failed possibly due to a network error", True),
        (distributed.DistNetworkError, "The client socket has timed out after 60000ms", True),
        (distributed.DistNetworkError, "Connection reset by peer", True),
        (distributed.DistStoreError, "wait timeout after 300000ms, keys: /default_pg/0//cpu//0/0", True),
        (RuntimeError, "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1", True),
        (distributed.DistBackendError, "NCCL error in: f.cpp:7, invalid usage, NCCL version 2.21.5", False),
        (distributed.DistBackendError, "ncclUnhandledCudaError: Call to CUDA function failed.", False),
        (distributed.DistNetworkError, "The server socket has failed to listen, error: EADDRINUSE", False),
        (RuntimeError, "CUDA error: the launch timed out and was terminated", False),
    ],
)
def test_only_errors_of_other_processes_are_lost_connections(monkeypatch, kind, message, is_lost):
    def fail():
        raise kind(message)

    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: True)
    with pytest.raises(UserError if is_lost else kind, match=re.escape(message)):
        launch(fail, 2, 1, 0, "auto")


def report_and_sleep(folder):
    Path(folder, os.environ["RANK"]).write_text("started")
    time.sleep(600)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal of Linux")
def test_processes_end_with_a_killed_parent(tmp_path):
    """The ranks hold the write end of the pipe: it closes when the last of them has ended."""
    code = f"import test_launch as t; t.launch(t.report_and_sleep, 2, 1, 0, 'auto', {str(tmp_path)!r})"
    (tmp_path / "start.py").write_text(f"if __name__ == '__main__':\n    {code}\n")
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "start.py")], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    )
    deadline = time.monotonic() + 120
    while not all((tmp_path / rank).is_file() for rank in "01") and parent.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.communicate(timeout=60)


@pytest.mark.usefixtures("forkserver")
def test_two_machines(tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda rank: launch(reduce, 1, 2, rank, url, str(tmp_path)), range(2)))
    assert results == [(0, 3, multiprocessing.get_start_method()), None]


@pytest.mark.parametrize(
    ("url", "machines", "message"),
    [
        ("auto", 2, "--dist-url auto finds a port on one machine only"),
        ("file:///x", 1, "must be tcp://HOST:PORT"),
        ("tcp://host", 2, "must be tcp://HOST:PORT"),
    ],
)
def test_invalid_addresses(url, machines, message):
    with pytest.raises(UserError, match=message):
        parse_address(url, machines)

"""Launches a function in several processes, on one machine or on several."""

import gc
import os
import pickle
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from torch import distributed, multiprocessing
from torch.multiprocessing.spawn import ProcessException, start_processes

from ..errors import Interrupted, UserError
from .interruption import StopSignal

_RESULT, _SIGNAL, _ERROR, _LOST = "result", "signal", "error", "lost"  # file names; the last two are prefixes

# In messages of NCCL, gloo and the rendezvous store.
_LOST_CONNECTION = re.compile(
    r"ncclRemoteError|remote process exited|connection (was )?(closed|reset|refused|lost|timed out)|broken pipe"
    r"|timed? ?out|unreachable|no route to host|socket .*(closed|reset)|failed to recv, got 0 bytes",
    re.IGNORECASE,
)


def launch(
    work: Callable[..., Any], processes: int, machines: int, machine_rank: int, dist_url: str, *arguments: Any
) -> Any:
    """Runs ``work(*arguments)`` in every process and returns the result of rank 0.

    With one process on one machine, or if ``torchrun`` has started this process as one of the job, ``work`` runs in
    this process. Otherwise, processes are spawned with the environment variables of ``torchrun``, so that
    ``torch.distributed.init_process_group()`` needs no arguments. The rendezvous store lives in the calling process of
    the first machine, which outlives all ranks. Remaining process groups are destroyed before a process exits.

    Args:
        work: an importable function.
        processes: number of processes on each machine.
        machines: number of machines, each of which must call this function.
        machine_rank: index of this machine.
        dist_url: ``tcp://HOST:PORT`` of the first machine; ``auto`` for a free port on this machine.
        arguments: picklable arguments.

    Returns:
        The result of rank 0 on the first machine; None on other machines. Under ``torchrun``, that of this process.

    Raises:
        UserError: if ``dist_url`` is invalid, if ``work`` raised it in any process, or if the connection to a process
            was lost.
        Interrupted: if a signal ended the processes.
        ProcessException: if a process failed otherwise.
    """
    if processes * machines == 1:
        return work(*arguments)
    if distributed.is_torchelastic_launched():
        try:
            with _process_groups_destroyed():
                return work(*arguments)
        except RuntimeError as error:
            if message := _describe_lost_connection(error):
                raise UserError(message) from error
            raise
    host, port = parse_address(dist_url, machines)
    with TemporaryDirectory() as name:
        folder = Path(name)
        # The open store reserves the port until the ranks connect.
        store = distributed.TCPStore(host, port, is_master=True, wait_for_workers=False) if machine_rank == 0 else None
        environment = {
            "MASTER_ADDR": host,
            "MASTER_PORT": str(store.port if store is not None else port),
            "NODE_RANK": str(machine_rank),
            "LOCAL_WORLD_SIZE": str(processes),
            "WORLD_SIZE": str(processes * machines),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 connects to the store instead of opening one
        }
        parts = work, environment, folder, multiprocessing.get_start_method(), arguments
        context = start_processes(_run, parts, nprocs=processes, join=False, start_method="spawn")
        with StopSignal(context.processes) as stop:
            try:
                while not context.join():
                    pass
            except ProcessException as error:  # the other processes have been terminated
                # A lost connection may be the effect of an error in another process.
                lost = folder.glob(f"{_LOST}{machine_rank * processes + error.error_index}")
                for path in [*sorted(folder.glob(f"{_ERROR}*")), *lost]:
                    raise UserError(path.read_text()) from None
                if stop.signum is None:
                    raise
        signum = stop.signum
        if signum is None and (folder / _SIGNAL).exists():  # this process has not received the signal
            signum = int((folder / _SIGNAL).read_text())
        if signum is not None:
            raise Interrupted(signum)
        return pickle.loads((folder / _RESULT).read_bytes()) if machine_rank == 0 else None


def parse_address(dist_url: str, machines: int) -> tuple[str, int]:
    """Returns host and port of the first machine; port 0 selects a free port.

    Raises:
        UserError: if ``dist_url`` is not ``tcp://HOST:PORT``, or is ``auto`` for several machines.
    """
    if dist_url == "auto":
        if machines > 1:
            raise UserError("--dist-url auto finds a port on one machine only: set it to tcp://HOST:PORT of machine 0")
        return "127.0.0.1", 0
    url = urlsplit(dist_url)
    if url.scheme != "tcp" or not url.hostname or not url.port:
        raise UserError(f"--dist-url {dist_url!r} must be tcp://HOST:PORT, or auto on one machine")
    return url.hostname, url.port


def _run(
    local_rank: int,
    work: Callable[..., Any],
    environment: dict[str, str],
    folder: Path,
    start_method: str,
    arguments: tuple[Any, ...],
) -> None:
    rank = int(environment["NODE_RANK"]) * int(environment["LOCAL_WORLD_SIZE"]) + local_rank
    os.environ.update(environment, LOCAL_RANK=str(local_rank), RANK=str(rank))
    # Otherwise, data loader workers would be spawned as well: each would import all modules and copy the data set.
    multiprocessing.set_start_method(start_method, force=True)
    # Replaces SIGINT, which torch sets and which is ignored below. Has an effect on Linux only.
    multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # terminals send it to all processes; the calling process handles it
    with _process_groups_destroyed():
        try:
            result = work(*arguments)
        except Interrupted as error:  # raised again by the calling process
            (folder / _SIGNAL).write_text(str(error.signum))
            return
        except (UserError, FloatingPointError) as error:  # torch would forward a traceback only
            (folder / f"{_ERROR}{rank}").write_text(str(error))
            raise
        except RuntimeError as error:
            if message := _describe_lost_connection(error):
                (folder / f"{_LOST}{rank}").write_text(message)
            raise
        if rank == 0:
            (folder / _RESULT).write_bytes(pickle.dumps(result))
        del result


@contextmanager
def _process_groups_destroyed() -> Iterator[None]:
    """Destroys all process groups at the end of the block."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # frames keep data loaders and process groups alive
        is_nccl = distributed.is_initialized() and distributed.get_backend() == "nccl"
        if isinstance(error, Interrupted) or not is_nccl:  # after an error, NCCL may wait for the other ranks
            destroy_process_groups()
        raise
    destroy_process_groups()


def _describe_lost_connection(error: RuntimeError) -> str:
    """Returns a message for errors caused by another process that has ended or is unreachable, "" for other errors."""
    is_distributed = isinstance(error, distributed.DistError) or "gloo/transport/" in str(error)
    if not (is_distributed and _LOST_CONNECTION.search(str(error))):
        return ""
    return (
        "no connection to another process, which has ended or is unreachable: see its messages. Training continues "
        f"from its last checkpoint with --resume ({str(error).partition(chr(10))[0]})"
    )


def destroy_process_groups() -> None:
    """Stops data loader workers, then destroys all process groups.

    A gloo thread that releases a tensor while the interpreter shuts down would abort the process ("terminate called
    without an active exception").
    """
    gc.collect()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    gc.collect()

"""Launches a function in several processes, on one machine or on several."""

import gc
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from torch import distributed, multiprocessing
from torch.multiprocessing.spawn import ProcessException, start_processes

from ..errors import Interrupted, UserError
from .interruption import StopSignal

_RESULT, _ERROR = "result", "error"


def launch(
    work: Callable[..., Any], processes: int, machines: int, machine_rank: int, dist_url: str, *arguments: Any
) -> Any:
    """Runs ``work(*arguments)`` in every process and returns the result of rank 0.

    With one process on one machine, ``work`` runs in this process. Otherwise, processes are spawned with the
    environment variables of ``torchrun``, so that ``torch.distributed.init_process_group()`` needs no arguments. The
    rendezvous store lives in the calling process of the first machine, which outlives all ranks. Remaining process
    groups are destroyed before a process exits.

    Args:
        work: an importable function.
        processes: number of processes on each machine.
        machines: number of machines, each of which must call this function.
        machine_rank: index of this machine.
        dist_url: ``tcp://HOST:PORT`` of the first machine; ``auto`` for a free port on this machine.
        arguments: picklable arguments.

    Returns:
        The result of rank 0 on the first machine; None on other machines.

    Raises:
        UserError: if ``dist_url`` is invalid, or if ``work`` raised it in any process.
        Interrupted: if a signal ended the processes.
        ProcessException: if a process failed otherwise.
    """
    if processes * machines == 1:
        return work(*arguments)
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
        context = start_processes(
            _run, (work, environment, folder, arguments), nprocs=processes, join=False, start_method="spawn"
        )
        with StopSignal(context.processes, forward=machine_rank == 0) as stop:
            try:
                while not context.join():
                    pass
            except ProcessException:  # the other processes have been terminated
                for path in sorted(folder.glob(f"{_ERROR}*")):
                    raise UserError(path.read_text()) from None
                if stop.signum is None:
                    raise
        if stop.signum is not None:
            raise Interrupted(stop.signum)
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
    local_rank: int, work: Callable[..., Any], environment: dict[str, str], folder: Path, arguments: tuple[Any, ...]
) -> None:
    rank = int(environment["NODE_RANK"]) * int(environment["LOCAL_WORLD_SIZE"]) + local_rank
    os.environ.update(environment, LOCAL_RANK=str(local_rank), RANK=str(rank))
    # Replaces SIGINT, which torch sets and which is ignored below. Has an effect on Linux only.
    multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # terminals send it to all processes; the calling process handles it
    result = None
    try:
        result = work(*arguments)
    except Interrupted:
        pass  # raised again by the calling process
    except Exception as error:
        if isinstance(error, UserError | FloatingPointError):  # torch would forward a traceback only
            (folder / f"{_ERROR}{rank}").write_text(str(error))
        traceback.clear_frames(error.__traceback__)  # frames keep data loaders and process groups alive
        if distributed.is_initialized() and distributed.get_backend() != "nccl":  # NCCL may wait for the other ranks
            destroy_process_groups()
        raise
    if rank == 0:
        (folder / _RESULT).write_bytes(pickle.dumps(result))
    del result
    destroy_process_groups()


def destroy_process_groups() -> None:
    """Stops data loader workers, then destroys all process groups.

    A gloo thread that releases a tensor while the interpreter shuts down would abort the process ("terminate called
    without an active exception").
    """
    gc.collect()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    gc.collect()

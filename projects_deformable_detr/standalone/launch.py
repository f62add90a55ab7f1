"""Several processes: one for each GPU, or on the CPU, here and on other machines."""

import multiprocessing
import os
import socket
from collections.abc import Callable, MutableSequence
from typing import Any
from urllib.parse import urlsplit

from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from ..errors import UserError
from .config import ConfigError

Work = Callable[..., None]


def launch(
    work: Work, processes: int, machines: int, machine_rank: int, dist_url: str, *arguments: Any
) -> dict[str, Any]:
    """Runs ``work(*arguments, results)`` in every process and returns what the one of rank 0 put into ``results``.

    Args:
        processes: per machine; with 1 on one machine the work is done in this process.
        dist_url: ``tcp://HOST:PORT`` of machine 0, or ``auto``: a free port of this machine.

    Raises:
        ConfigError: if the address is missing or not of that form.
        UserError: as ``work`` has raised it, in whichever process.
    """
    results: dict[str, Any] = {}
    if processes * machines == 1:
        work(*arguments, results)
        return results
    host, port = _address(dist_url, machines)
    with multiprocessing.Manager() as manager:
        shared, errors = manager.dict(), manager.list()
        environment = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "NODE_RANK": str(machine_rank)}
        try:
            start_processes(
                _run, (work, environment, (*arguments, shared), errors), nprocs=processes, start_method="spawn"
            )
        except (ProcessExitedException, ProcessRaisedException):  # the other processes have been ended
            if errors:
                raise UserError(errors[0]) from None
            raise
        results.update(shared)
    return results


def _run(
    local_rank: int,
    work: Work,
    environment: dict[str, str],
    arguments: tuple[Any, ...],
    errors: MutableSequence[str],
) -> None:
    """Lightning takes a process with LOCAL_RANK for one that was started for it."""
    os.environ.update(environment, LOCAL_RANK=str(local_rank))
    try:
        work(*arguments)
    except UserError as error:  # for the parent, which would get a traceback only
        errors.append(str(error))
        raise


def _address(dist_url: str, machines: int) -> tuple[str, int]:
    if dist_url == "auto":
        if machines > 1:
            raise ConfigError("--dist-url auto finds a port on one machine only: give tcp://HOST:PORT of machine 0")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return "127.0.0.1", probe.getsockname()[1]
    url = urlsplit(dist_url)
    if url.scheme != "tcp" or not url.hostname or not url.port:
        raise ConfigError(f"--dist-url {dist_url!r} must be tcp://HOST:PORT, or auto on one machine")
    return url.hostname, url.port

"""Ends training after the current iteration on SIGINT (Ctrl-C) or SIGTERM."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from torch import distributed

logger = logging.getLogger(__name__)
_MESSAGE = b"\nStopping after this iteration; a second signal stops at once.\n"


class StopSignal:
    """Context manager that records SIGINT or SIGTERM, so that training can save its state.

    A second signal ends the process at once with the exit status 128 plus the signal number, as in shells. The calling
    process of `launch.launch` forwards the first signal to its child processes and handles a second one.

    Args:
        processes: training processes, in the calling process of `launch.launch`; a second signal kills them.
        forward: whether to forward the first signal to the first of them.

    Attributes:
        signum: number of the first signal, or None.
    """

    def __init__(self, processes: Sequence[BaseProcess] = (), *, forward: bool = True) -> None:
        self.processes = processes
        self.forward = forward
        self.signum: int | None = None
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            signals = [signal.SIGTERM] if multiprocessing.parent_process() else [signal.SIGINT, signal.SIGTERM]
            self._previous = {signum: signal.signal(signum, self._receive) for signum in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _receive(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data loader worker, which its parent process terminates with SIGTERM
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
        elif self.signum is None:
            self.signum = signum
            if not multiprocessing.parent_process():
                os.write(2, _MESSAGE)
            if self.forward and self.processes and (pid := self.processes[0].pid):
                os.kill(pid, signal.SIGTERM)
        elif not multiprocessing.parent_process():
            for process in self.processes:
                process.kill()
            os._exit(128 + signum)

    def broadcast(self) -> int | None:
        """Returns the signal that rank 0 has received, on all ranks."""
        if not distributed.is_initialized():
            return self.signum
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        number = torch.tensor(self.signum or 0, device=device)
        distributed.broadcast(number, 0)
        return int(number) or None


def log_stop(iterations: int, max_iter: int) -> None:
    """Logs that a signal has ended training."""
    logger.info("Stopped after iteration %d of %d: --resume continues", iterations, max_iter)

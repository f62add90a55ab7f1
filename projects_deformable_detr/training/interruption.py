"""Ends training and evaluation on SIGINT (Ctrl-C) or SIGTERM: after the current iteration or evaluated batch."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader

from ..errors import Interrupted

logger = logging.getLogger(__name__)
_MESSAGE = b"\nStopping after this iteration or evaluated batch; a second signal stops immediately.\n"
_active: "StopSignal | None" = None


class StopSignal:
    """Context manager that records SIGINT or SIGTERM, so that training can save its state.

    A second signal ends the process immediately, with the exit status 128 plus the signal number, as in shells. The
    calling process of `launch.launch` forwards the first signal to its child processes and handles a second one. At
    most one context is active in a process.

    Args:
        processes: training processes, in the calling process of `launch.launch`. The first signal is forwarded to
            them as SIGTERM; a second one kills them.

    Attributes:
        signum: number of the first signal, or None.
    """

    def __init__(self, processes: Sequence[BaseProcess] = ()) -> None:
        self.processes = processes
        self.signum: int | None = None
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}
        self._group: Any = None

    def __enter__(self) -> "StopSignal":
        global _active
        _active = self
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            signals = [signal.SIGTERM] if multiprocessing.parent_process() else [signal.SIGINT, signal.SIGTERM]
            self._previous = {signum: signal.signal(signum, self._receive) for signum in signals}
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        _active = self._group = None
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
            for process in self.processes:
                process.terminate()
        elif not multiprocessing.parent_process():
            for process in self.processes:
                process.kill()
            os._exit(128 + signum)

    def reduce(self) -> int | None:
        """Returns the signal that any rank has received, on all ranks."""
        if not distributed.is_initialized():
            return self.signum
        number = torch.tensor(self.signum or 0)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._cpu_group())
        return int(number) or None

    def _cpu_group(self) -> Any:
        """Returns a group for tensors on the CPU, so that a step does not wait for the GPU; None: the default group."""
        if self._group is None and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")
        return self._group


def stop_evaluation(*, at_end: bool = False) -> None:
    """Raises `Interrupted` on all ranks if one of them has received a signal.

    Must be called on every rank before each batch of an evaluation, and once with ``at_end`` after the last batch.
    """
    if _active and (at_end or _active.signum) and (signum := _active.reduce()):
        raise Interrupted(signum)


class _ShieldedLoader(DataLoader[Any]):
    """Data loader that starts its workers with blocked signals, because their initialization may take seconds."""

    def __iter__(self) -> Any:
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def shield_workers(loader: DataLoader[Any]) -> None:
    """Makes the workers of a data loader ignore SIGINT, and SIGTERM from processes other than their parent.

    Such signals to a process group would end the workers before the training has saved its state.
    """
    if type(loader) is DataLoader:
        loader.__class__ = _ShieldedLoader
    loader.worker_init_fn = partial(_initialize_worker, loader.worker_init_fn)


def _initialize_worker(initialize: Callable[[int], object] | None, worker_id: int) -> None:
    shield_worker()
    if initialize is not None:
        initialize(worker_id)


def shield_worker() -> None:
    """Shields the current process, a data loader worker, as described in `shield_workers`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends the process when its parent sends SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def log_stop(iterations: int, max_iter: int) -> None:
    """Logs that a signal has ended training."""
    if iterations < max_iter:
        logger.info("Stopped after iteration %d of %d: --resume continues", iterations, max_iter)
    else:
        logger.info("Stopped in the evaluation after all %d iterations: --resume completes the run", iterations)

"""Remaining time of a training run."""

import time
from collections import deque
from collections.abc import Callable
from statistics import fmean, median

_RECENT = 50  # iterations of the median in the remaining time


class RemainingTime:
    """Estimates the remaining wall time of a training run, including data loading, checkpoints and evaluations.

    An iteration takes the median of the last 50, which follows changes of the load, plus the mean excess of pauses,
    which are iterations that take more than twice the median of the 50 around them. An evaluation takes as many times
    an iteration as the last one did; before the first evaluation in this process has ended, none are included.

    Args:
        iterations: total number of iterations.
        eval_period: number of iterations between evaluations; there is also a final one.
        clock: returns the time in seconds.
    """

    def __init__(self, iterations: int, eval_period: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.iterations = iterations
        self.eval_period = eval_period
        self.clock = clock
        self._last = clock()  # end of the last iteration or evaluation
        self.count = 0  # measured iterations
        self._times: deque[float] = deque(maxlen=_RECENT)
        self._excess: deque[float] = deque(maxlen=1000)  # except that of the last iterations
        self._evaluation = 0.0  # in iterations

    def end_iteration(self) -> None:
        """Measures the time since the last iteration or evaluation."""
        seconds = self._elapsed()
        self.count += 1
        if self.count == 2:
            self._times.clear()  # without the first iteration, which starts the workers
        self._times.append(seconds)
        if len(self._times) == _RECENT:  # the median of both sides distinguishes a pause from a change of speed
            self._excess.append(_excess(self._times[_RECENT // 2], median(self._times)))

    def end_evaluation(self) -> None:
        """Measures an evaluation, with a checkpoint saved before it."""
        if self.count:
            self._evaluation = self._elapsed() / median(self._times)

    def seconds(self, iteration: int, is_evaluated: bool = False) -> float:
        """Returns the time after an iteration, counted from 1, and before or after its evaluation."""
        typical = median(self._times)
        last = list(self._times)[_RECENT // 2 + 1 :]  # empty at first: first iterations may be much slower
        excess = [*self._excess, *(_excess(seconds, typical) for seconds in last)]
        started = (iteration - 1 + is_evaluated) // self.eval_period
        evaluations = -(-self.iterations // self.eval_period) - started
        duration = typical + (fmean(excess) if excess else 0.0)
        return duration * (self.iterations - iteration) + typical * self._evaluation * evaluations

    def _elapsed(self) -> float:
        last, self._last = self._last, self.clock()
        return self._last - last


def _excess(seconds: float, typical: float) -> float:
    return seconds - typical if seconds > 2 * typical else 0.0

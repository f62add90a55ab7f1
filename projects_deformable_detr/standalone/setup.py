"""Sets up a process: log, config file, seed, precision and number of threads."""

import logging
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from ..config.run import Run
from ..data.records import Summary
from ..engine import is_main_process
from ..training.output_dir import LogFormatter

logger = logging.getLogger(__name__)

# Lightning's warnings about deliberate choices of this project and about Lightning's own code.
_IGNORED_WARNINGS = (
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*in eval mode at the start.*",  # a frozen detector
)


def set_up(run: Run, datasets: Iterable[Summary]) -> None:
    """Sets up a process of the job, and logs its data sets."""
    start_log(run.output_dir)
    if run.eval_only and is_main_process() and not (run.output_dir / "config.yaml").exists():
        (run.output_dir / "config.yaml").write_text(run.cfg_text, encoding="utf-8")
    for summary in datasets:
        counts = (summary.num_images, summary.num_annotations, len(summary.class_names))
        logger.info("%s: %d images, %d objects, %d classes", summary.name, *counts)
    process = run.process
    if process.seed >= 0:
        torch.manual_seed(process.seed)
    else:
        torch.seed()
    if process.float32_precision:
        torch.set_float32_matmul_precision(process.float32_precision)
    if process.device == "cpu" and run.processes > 1:  # the processes share the cores
        torch.set_num_threads(max(1, torch.get_num_threads() // run.processes))


class _TqdmHandler(logging.StreamHandler):
    """Writes records to stdout, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def start_log(output_dir: Path) -> None:
    """Logs to stdout and to ``log.txt`` on rank 0; other ranks log warnings to stdout. Idempotent."""
    package = logging.getLogger("projects_deformable_detr")
    package.setLevel(logging.INFO)
    for handler in [
        _TqdmHandler(),
        *([logging.FileHandler(output_dir / "log.txt", encoding="utf-8")] if is_main_process() else []),
    ]:
        handler.name = f"standalone {type(handler).__name__}"
        for previous in [item for item in package.handlers if item.name == handler.name]:
            package.removeHandler(previous)
            previous.close()
        handler.setFormatter(LogFormatter())
        handler.setLevel(logging.INFO if is_main_process() else logging.WARNING)
        package.addHandler(handler)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)

"""Before anything is built: the config and the data sets checked, the log, the seed."""

import logging
import os
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..config import load_cfg, set_things
from ..config.data import data_config, load, resolve_num_classes, resolve_things
from ..config.evaluation import evaluation_config
from ..config.loading import processes_per_machine
from ..config.training import schedule_config, training_config
from ..data import catalog
from ..data.records import Records
from ..evaluation import lvis

Datasets = dict[str, Records]
logger = logging.getLogger(__name__)

# On what is chosen here on purpose, or on Lightning's own code.
_LIGHTNING_REMARKS = (
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*in eval mode at the start.*",  # a frozen detector
)


def configure(args: Namespace) -> Any:
    """Returns the config of file and options, with device and number of classes resolved, frozen.

    Raises:
        UserError: for an unknown key, an unavailable device, or numbers of classes that disagree.
    """
    cfg = load_cfg("standalone", args)
    evaluation_config(cfg)  # raises for invalid values
    if not args.eval_only:
        training_config(cfg)
        schedule_config(cfg)
    start_log(cfg)
    load_datasets(args, cfg)  # first, so that the classes need no further pass over the files
    cfg.MODEL.DETR.NUM_CLASSES = resolve_num_classes(cfg)
    set_things(cfg, resolve_things(cfg))
    cfg.freeze()
    return cfg


def load_datasets(args: Namespace, cfg: Any) -> Datasets:
    """Loads and checks every data set of the run.

    Raises:
        DatasetError: naming file, record and remedy.
    """
    config = data_config(cfg, eval_only=args.eval_only)
    datasets = {name: load(catalog.get(name), config) for name in dict.fromkeys([*config.train, *config.test])}
    for name in config.test:
        if datasets[name].summary.is_lvis:
            lvis.check_installed(name)
    return datasets


def register(args: Namespace) -> None:
    """Data sets of the command line."""
    for name, json_file, image_root in args.register or []:
        catalog.register(name, json_file, image_root)


def set_up(args: Namespace, cfg: Any, datasets: Datasets) -> None:
    """Catalog, log, config file, seed, precision, threads of one process."""
    register(args)  # again: a process that was started has a fresh catalog
    start_log(cfg)
    if is_first():
        Path(cfg.OUTPUT_DIR, "config.yaml").write_text(cfg.dump())
    for summary in (records.summary for records in datasets.values()):
        counts = (summary.num_images, summary.num_annotations, len(summary.class_names))
        logger.info("%s: %d images, %d objects, %d classes", summary.name, *counts)
    if cfg.SEED >= 0:
        torch.manual_seed(cfg.SEED)
    else:
        torch.seed()
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    if cfg.MODEL.DEVICE == "cpu" and processes_per_machine(args) > 1:  # they share the cores
        torch.set_num_threads(max(1, torch.get_num_threads() // processes_per_machine(args)))


def is_first() -> bool:
    """Whether this process is rank 0 of all; before Lightning knows."""
    return os.environ.get("NODE_RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


class _Handler(logging.StreamHandler):
    """Prints above the progress bar, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record to stdout."""
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def start_log(cfg: Any) -> None:
    """The first process tells stdout and ``OUTPUT_DIR/log.txt``; others only what is a warning."""
    output_dir = Path(cfg.OUTPUT_DIR)
    if is_first():
        output_dir.mkdir(parents=True, exist_ok=True)
    package = logging.getLogger("projects_deformable_detr")
    package.setLevel(logging.INFO)
    handlers = [_Handler()] + ([logging.FileHandler(output_dir / "log.txt")] if is_first() else [])
    for handler in handlers:
        handler.name = f"standalone {type(handler).__name__}"
        for older in [item for item in package.handlers if item.name == handler.name]:
            package.removeHandler(older)
            older.close()
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%m/%d %H:%M:%S"))
        handler.setLevel(logging.INFO if is_first() else logging.WARNING)
        package.addHandler(handler)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for remark in _LIGHTNING_REMARKS:
        warnings.filterwarnings("ignore", remark)

"""Trains, resumes or evaluates with Detectron2: entry point of ``train_net.py`` in this engine."""

import argparse
import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import default_setup
from detectron2.engine.hooks import CallbackHook
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import distributed

from ..config import load_cfg
from ..config.data import data_config, dataset_names, sampler_config, with_classes
from ..config.evaluation import evaluation_config
from ..config.loading import processes_per_machine
from ..config.reading import naming_keys
from ..config.run import PROCESS_KEYS, check_run, process_config
from ..config.training import log_start, set_epochs
from ..data.config import SAMPLERS
from ..engine import is_main_process
from ..errors import UserError
from ..training.last_checkpoint import find_last_checkpoint
from ..training.launch import launch
from ..training.output_dir import locked, log_unless_error, start_run
from . import data, functions, import_aliases
from .classes import known_class_names, resolve_thing_classes
from .trainer import Trainer


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Trains or evaluates in ``num_gpus`` processes on each of ``num_machines`` machines.

    Config and data sets are checked before any process starts.

    Args:
        args: from `cli.arguments.argument_parser`.

    Returns:
        Metrics of the test data sets as Detectron2 returns them, such as ``{"bbox": {"AP": …}}`` in percent; empty on
        machines other than the first.

    Raises:
        UserError: for invalid input in any process.
    """
    with functions.restored():
        cfg = setup(args)
        processes, folder = processes_per_machine(args), Path(process_config(cfg).output_dir)
        locks = not args.eval_only and args.machine_rank == 0 and is_main_process()
        with naming_keys(PROCESS_KEYS), locked(folder, enabled=locks):
            return launch(run, processes, args.num_machines, args.machine_rank, args.dist_url, args, cfg) or {}


def setup(args: argparse.Namespace) -> CfgNode:
    """Returns the frozen config from the file and options, with device, number of classes and things resolved.

    Functions of data sets are replaced in Detectron2's catalog until the end of `functions.restored`.

    Raises:
        UserError: for an unknown key, an unavailable device, an invalid data set, or numbers of classes that disagree.
    """
    cfg = load_cfg("detectron2", args)
    _register(cfg)
    check_run(cfg, args)
    if not args.eval_only:
        _check_training(cfg)
    output_dir = Path(process_config(cfg).output_dir)
    with log_unless_error(output_dir), _cityscapes(cfg):
        config = data_config(cfg, eval_only=args.eval_only)
        data.check(config)
        functions.check(config)
        if args.epochs:
            set_epochs(cfg, args.epochs, data.count_training_images(config), args.opts)
        if not args.eval_only:
            log_start(cfg, resume=args.resume)
        cfg = with_classes(cfg, data.resolve_num_classes, resolve_thing_classes)
        if args.resume:
            find_last_checkpoint(output_dir, "detectron2", known_class_names(cfg), for_evaluation=args.eval_only)
    cfg.freeze()
    return cfg


def _check_training(cfg: CfgNode) -> None:
    """Checks keys whose invalid values would make Detectron2 fail late or its loader never return."""
    name, known = sampler_config(cfg).name, (*SAMPLERS, "RandomSubsetTrainingSampler")
    if name not in known:
        raise UserError(f"DATALOADER.SAMPLER_TRAIN must be one of {', '.join(known)}, got {name!r}")
    if name == "RandomSubsetTrainingSampler" and "RANDOM_SUBSET_RATIO" not in cfg.DATALOADER:
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN {name} needs DATALOADER.RANDOM_SUBSET_RATIO, for which Detectron2 has no "
            "default, so that no config file can set it: choose another sampler, or set the key in a script"
        )
    process = process_config(cfg)
    if process.strategy != "ddp":
        raise UserError(
            f"SOLVER.STRATEGY {process.strategy} is supported by the standalone engine only: use it with --engine "
            "standalone, or set it to ddp"
        )
    if process.amp and process.device == "cpu":
        raise UserError(
            "SOLVER.AMP.ENABLED must be False on the CPU: Detectron2 trains in mixed precision on GPUs only; "
            "--engine standalone also supports it on the CPU"
        )


def run(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    """Runs one process of the job; returns the metrics on the main process."""
    _register(cfg)  # a spawned process does not inherit the catalogs
    several = processes_per_machine(args) * args.num_machines > 1
    with process_groups(cfg) if several else contextlib.nullcontext(), _cityscapes(cfg):
        # default_setup colors the config; it uses the same logger.
        for handler in setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank()).handlers:
            stream = handler.stream if isinstance(handler, logging.StreamHandler) else None
            if stream is None or stream.closed or not stream.isatty():
                handler.addFilter(_remove_colors)
        with _kept(Path(process_config(cfg).output_dir, "config.yaml")):
            default_setup(cfg, args)
        _setup_logger(cfg)
        functions.read_once(data_config(cfg, eval_only=args.eval_only))
        return _evaluate(args, cfg) if args.eval_only else _train(args, cfg)


def _remove_colors(record: logging.LogRecord) -> bool:
    """Removes color codes from a record; files are written after the terminal."""
    record.msg = re.sub("\x1b\\[[0-9;]*m", "", str(record.msg))
    return True


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[None]:
    """Restores a file that is overwritten in the context, to keep that of an earlier run until training starts."""
    content = path.read_bytes() if comm.is_main_process() and path.is_file() else None
    try:
        yield
    finally:
        if content is not None:
            path.write_bytes(content)


@contextlib.contextmanager
def process_groups(cfg: CfgNode) -> Iterator[None]:
    """Connects the processes as Detectron2's ``launch`` does, but selects the backend by ``MODEL.DEVICE``."""
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    if process_config(cfg).device == "cpu":
        distributed.init_process_group("gloo", timeout=DEFAULT_TIMEOUT)
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))  # the processes share the cores
    else:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(processes)
    comm.synchronize()
    try:
        yield
    finally:  # Detectron2's references would keep the groups' threads alive after destroy_process_group
        comm._LOCAL_PROCESS_GROUP = None
        comm._get_global_gloo_group.cache_clear()


def _train(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
        trainer.register_hooks([CallbackHook(before_train=lambda _: _start_run(args, cfg))])
    trainer.train()
    return dict(getattr(trainer, "_last_eval_results", None) or {})


def _start_run(args: argparse.Namespace, cfg: CfgNode) -> None:
    folder = Path(process_config(cfg).output_dir)
    with naming_keys(PROCESS_KEYS):
        start_run(folder, cfg.dump(), resume=args.resume, overwrite=args.overwrite)


def _evaluate(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    model = Trainer.build_model(cfg)
    checkpointer = Trainer.build_checkpointer(cfg, model, for_evaluation=True)
    checkpointer.resume_or_load(process_config(cfg).weights, resume=args.resume)
    results = Trainer.test(cfg, model)
    if evaluation_config(cfg).tta is not None:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return dict(results)


def _setup_logger(cfg: CfgNode) -> None:
    """Configures the project's logger with Detectron2's format and files. Idempotent."""
    setup_logger(
        process_config(cfg).output_dir,
        distributed_rank=comm.get_rank(),
        name="projects_deformable_detr",
        abbrev_name="deformable_detr",
        enable_propagation=True,  # propagates to the caller's handlers
    )


def _cityscapes(cfg: CfgNode) -> contextlib.AbstractContextManager[None]:
    """Context in which Detectron2's loaders and evaluators of Cityscapes are importable, if the run uses them."""
    kinds = [MetadataCatalog.get(name).get("evaluator_type") for name in dataset_names(cfg)]
    uses_cityscapes = any(kind and kind.startswith("cityscapes") for kind in kinds)
    return import_aliases.installed() if uses_cityscapes else contextlib.nullcontext()


def _register(cfg: CfgNode) -> None:
    for item in cfg.DATASETS.REGISTER:
        data.register(*item)

"""Train, resume or evaluate with Detectron2: what ``train_net.py`` runs in this engine."""

import argparse
import difflib
import multiprocessing
import os
from collections.abc import Iterator, MutableMapping, MutableSequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing.spawn import ProcessException
from yaml import YAMLError

from ..config import get_cfg, set_things
from ..config.checks import SAMPLERS, check_sampler, check_views
from ..errors import UserError
from . import data, monitors
from .inspection import check
from .trainer import Trainer


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, or evaluates with ``args.eval_only``, in ``num_gpus`` processes on each of ``num_machines`` machines.

    Config and data sets are checked in full before any process starts.

    Args:
        args: Detectron2's arguments, and ``register``: a list of (name, JSON file, image folder).

    Returns:
        Detectron2's metrics of the test data sets, such as ``{"bbox": {"AP": …}}`` in percent; empty on machines
        other than the first.

    Raises:
        UserError: for input that cannot be used, also where only a process of several finds that out.
    """
    _register(args)
    cfg = setup(args)
    processes = max(args.num_gpus or 1, 1)
    if processes * args.num_machines == 1:
        results: dict[str, Any] = {}
        launch(run, 1, args=(args, cfg, results))
        return results
    with multiprocessing.Manager() as manager:  # launch returns nothing: the processes leave here what is to be known
        shared, refusals = manager.dict(), manager.list()
        try:
            launch(
                _run_in_process,
                processes,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args, cfg, shared, refusals),
            )
        except ProcessException:
            if refusals:
                raise UserError(refusals[0]) from None
            raise
        return dict(shared)


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of the file and options, checked, with device and number of classes resolved, frozen.

    Raises:
        UserError: if a file or key of the config does not exist, it asks for a device that is not there or cannot do
            what it should, names no data set where one is needed, a data set has a fault, or numbers of classes
            disagree.
    """
    cfg = get_cfg("detectron2")
    cfg.MODEL.DEVICE = "auto"  # Detectron2's own default is cuda: to see whether the user asks for that
    try:
        if args.config_file:
            cfg.merge_from_file(args.config_file, allow_unsafe=False)
        cfg.merge_from_list(args.opts)
    except (AssertionError, KeyError, ValueError, OSError, YAMLError) as error:
        reason = str(error.args[0] if isinstance(error, KeyError) else error)  # KeyError's text is in quotes
        raise UserError(
            f"config {args.config_file or ''} and the command line: {reason}{_hint(reason, cfg)}"
        ) from error
    cfg.MODEL.DEVICE = _device(cfg.MODEL.DEVICE, args.num_gpus)
    _check(args, cfg)
    _setup_logger(cfg)
    check(cfg, [] if args.eval_only else cfg.DATASETS.TRAIN, for_evaluation=False)
    check(cfg, cfg.DATASETS.TEST, for_evaluation=True)
    cfg.MODEL.DETR.NUM_CLASSES = data.resolve_num_classes(cfg)
    set_things(cfg, data.resolve_things(cfg))
    cfg.freeze()
    return cfg


def _hint(reason: str, cfg: CfgNode) -> str:
    """What Detectron2's words on a config leave out."""
    if reason.startswith("Non-existent key: "):
        near = difflib.get_close_matches(reason.split(": ")[1], _keys(cfg), n=1)
        return f"; did you mean {near[0]}?" if near else ""
    if "<class 'float'> vs. <class 'int'>" in reason:
        return "; write the number with a point, as 2.0"
    return ""


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _check_sampler(cfg: CfgNode) -> None:
    """Samplers that Detectron2 would stop at with an error of its own, or go on with for ever."""
    name, known = cfg.DATALOADER.SAMPLER_TRAIN, (*SAMPLERS, "RandomSubsetTrainingSampler")
    if name not in known:
        raise UserError(f"DATALOADER.SAMPLER_TRAIN {name!r} is not known: choose one of {', '.join(known)}")
    if name == "RandomSubsetTrainingSampler" and "RANDOM_SUBSET_RATIO" not in cfg.DATALOADER:
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN {name} reads DATALOADER.RANDOM_SUBSET_RATIO, for which Detectron2 has no "
            "default, so that no config file can set it: choose another, or set it in a script of your own"
        )
    check_sampler(cfg)


def _check(args: argparse.Namespace, cfg: CfgNode) -> None:
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UserError("--dist-url auto finds a port on one machine only: give tcp://HOST:PORT of machine 0")
    several = max(args.num_gpus or 1, 1) * args.num_machines > 1
    if several and cfg.MODEL.DEVICE == "cpu" and torch.cuda.is_available():
        raise UserError(
            "MODEL.DEVICE is cpu, but Detectron2 connects several processes for GPUs where it sees one: put "
            "CUDA_VISIBLE_DEVICES= before the command"
        )
    check_views(cfg)
    if args.eval_only:
        if not cfg.DATASETS.TEST:
            raise UserError("--eval-only needs DATASETS.TEST to name a data set")
        return
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name a data set to train on")
    _check_sampler(cfg)
    monitors.check(cfg)
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        raise UserError(
            "SOLVER.AMP.ENABLED is True, but Detectron2 trains in mixed precision on a GPU only: set it to False, or "
            "train with --engine standalone, which does so on the CPU too"
        )


def _run_in_process(
    args: argparse.Namespace, cfg: CfgNode, results: MutableMapping[str, Any], refusals: MutableSequence[str]
) -> None:
    """`run` in one of several processes: what a person can mend goes to the parent as a message."""
    try:
        run(args, cfg, results)
    except UserError as error:
        refusals.append(str(error))
        raise


def run(args: argparse.Namespace, cfg: CfgNode, results: MutableMapping[str, Any]) -> None:
    """One process of the job; the main one puts its metrics into ``results``."""
    _register(args)  # again: a process that launch starts has fresh catalogs
    if comm.get_local_size() > 1 and cfg.MODEL.DEVICE == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))  # they share the cores
    default_setup(cfg, args)
    _setup_logger(cfg)
    metrics = _evaluate(args, cfg) if args.eval_only else _train(args, cfg)
    if comm.is_main_process():
        results.update(metrics)


def _train(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return dict(getattr(trainer, "_last_eval_results", None) or {})


def _evaluate(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    model = Trainer.build_model(cfg)
    Trainer.build_checkpointer(cfg, model, for_evaluation=True).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return dict(results)


def _setup_logger(cfg: CfgNode) -> None:
    """The project's lines go where Detectron2's go; a second call in the same process changes nothing."""
    setup_logger(
        cfg.OUTPUT_DIR,
        distributed_rank=comm.get_rank(),
        name="projects_deformable_detr",
        abbrev_name="deformable_detr",
        enable_propagation=True,  # a caller's own handlers keep getting the lines
    )


def _register(args: argparse.Namespace) -> None:
    for name, json_file, image_root in args.register or []:
        data.register(name, os.path.abspath(json_file), os.path.abspath(image_root))


def _device(wanted: str, num_gpus: int | None) -> str:
    """The device that the config names.

    Where it names none, or ``auto``: a GPU, or the CPU for ``--num-gpus 0`` and on a machine that has no GPU. A GPU
    that was asked for by name or number is never replaced.
    """
    available = torch.cuda.device_count()
    if wanted.startswith("cuda") and not available:
        raise UserError(f"MODEL.DEVICE is {wanted}, but PyTorch finds no GPU here: add MODEL.DEVICE cpu")
    if (num_gpus or 0) > available and wanted != "cpu":
        raise UserError(
            f"--num-gpus {num_gpus}, but PyTorch finds {available} here: ask for fewer, or put CUDA_VISIBLE_DEVICES= "
            "before the command and add MODEL.DEVICE cpu to run as many processes on the CPU"
        )
    if wanted != "auto":
        return wanted
    if num_gpus is None and not available:
        print("No GPU found: running on the CPU.", flush=True)
    return "cuda" if available and num_gpus != 0 else "cpu"

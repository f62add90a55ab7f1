"""Loads the config of a run: merges the file and options, selects the device and checks the number of processes."""

import difflib
import os
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from yaml import YAMLError

from ..errors import UserError
from ..training.launch import parse_address
from .engines import get_cfg
from .recipes import find_config, names

_DEVICES = ("cuda", "cpu")


def load_cfg(engine: str, args: Namespace) -> CfgNode:
    """Returns the config of a command line, with ``MODEL.DEVICE`` resolved, after all checks that require no data.

    Args:
        engine: ``"detectron2"`` or ``"standalone"``.
        args: arguments of `cli.arguments.argument_parser`.

    Raises:
        UserError: for an invalid key or option; the message contains it.
    """
    cfg = get_cfg(engine)
    cfg.MODEL.DEVICE = "auto"  # with Detectron2's default, cuda, a missing GPU would be an error
    merge(cfg, args.config_file, _options(args))
    if args.check_images and cfg.DATASETS.CHECK_IMAGES != "pixels":
        cfg.DATASETS.CHECK_IMAGES = "all"
    _add_registered(cfg, args)
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    _check_processes(cfg, args)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise UserError("--eval-only requires a data set: set DATASETS.TEST")
    if not args.eval_only and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: set it to the training data sets")
    _check_epochs(cfg, args)
    if args.eval_only:
        cfg.DATASETS.TRAIN = ()  # the training data need not exist
    return cfg


def _check_epochs(cfg: CfgNode, args: Namespace) -> None:
    if args.epochs is None:
        return
    given = [word.partition("=")[0] for word in args.opts]
    if args.epochs < 1 or args.eval_only or "SOLVER.MAX_ITER" in given:
        raise UserError("--epochs must be at least 1, and cannot be combined with --eval-only or SOLVER.MAX_ITER")
    if cfg.DATASETS.TEST and "TEST.EVAL_PERIOD" not in given:
        cfg.TEST.EVAL_PERIOD = 1  # set_epochs replaces it when the number of images is available


def _options(args: Namespace) -> list[str]:
    """Returns the keys and values of the command line, including those of ``--weights`` and ``--output``."""
    flags = {"MODEL.WEIGHTS": args.weights, "OUTPUT_DIR": args.output}
    return [*(word for key, value in flags.items() if value for word in (key, value)), *(args.opts)]


def _add_registered(cfg: CfgNode, args: Namespace) -> None:
    """Adds the data sets of the command line to the config, and selects them if the config uses none of them.

    Raises:
        UserError: if the config uses no data set of ``--register``, and these are not a pair NAME_train and NAME_val;
            or for ``--val-data`` without ``--train-data`` or ``--eval-only``.
    """
    given = {name: [name, os.path.abspath(file), os.path.abspath(images)] for name, file, images in args.register or []}
    files = {f"custom_{split}": vars(args)[f"{split}_data"] for split in ("train", "val")}
    files = {name: item for name, item in files.items() if item}
    given |= {name: [name, *map(os.path.abspath, item)] for name, item in files.items()}
    cfg.DATASETS.REGISTER = [*(item for item in cfg.DATASETS.REGISTER if item[0] not in given), *given.values()]
    if files:
        if "custom_train" not in files and not args.eval_only:
            raise UserError("--val-data requires --train-data or --eval-only")
        cfg.DATASETS.TRAIN = tuple(name for name in files if name == "custom_train")
        cfg.DATASETS.TEST = tuple(name for name in files if name == "custom_val")
        return
    used = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    if not given or used & set(given) or any(word.startswith("DATASETS.T") for word in args.opts or []):
        return
    train = [name for name in given if name.endswith("_train")]
    test = [name for name in given if name.endswith("_val")] or (list(given) if args.eval_only else [])
    is_pair = len(train) == 1 and [f"{name.removesuffix('_train')}_val" for name in train] == test
    if not (is_pair or (args.eval_only and len(test) == 1)):
        raise UserError(
            f"the registered data sets ({', '.join(given)}) are not in DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} or "
            f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)}: set these keys, or register a pair NAME_train and NAME_val"
        )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    print(f"Data sets of --register: DATASETS.TRAIN {tuple(train)}, DATASETS.TEST {tuple(test)}.", flush=True)


def merge(cfg: CfgNode, config_file: str, options: Sequence[str]) -> None:
    """Merges a YAML file with its ``_BASE_`` files, and options ``[key, value, key, value, …]``, in place.

    Args:
        cfg: config of an engine.
        config_file: path, or name of a recipe; empty: no file.
        options: keys and values.

    Raises:
        UserError: for an invalid file or option; the message contains file, key and, for an unknown key, the most
            similar one.
    """
    config_file = find_config(config_file)
    source = f"config file {config_file}"
    if config_file.endswith(".py"):
        raise UserError(f"{source}: LazyConfigs are not supported here; use a YAML file, such as those in configs/")
    try:
        if config_file:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        source = "command line"
        if late := [word for word in options if word.startswith("--")]:
            raise UserError(f"{late[0]} must come before the first KEY VALUE")
        words = _split_words(options)
        if len(words) % 2:
            raise UserError(f"{words[-1]!r} has no value: options are pairs, KEY VALUE or KEY=VALUE")
        cfg.merge_from_list(words)
    except (AttributeError, TypeError) as error:  # raised for lists, strings and empty files
        raise UserError(f"{source} contains no config sections: use a YAML file like those in configs/") from error
    except (AssertionError, KeyError, ValueError, OSError, YAMLError) as error:
        problem = str(error.args[0] if isinstance(error, KeyError) else error)  # str of a KeyError adds quotes
        if isinstance(error, OSError):
            problem = f"cannot read {error.filename}: {error.strerror}"
            if error.filename == config_file and Path(config_file).stem in names():
                problem += f"; the packaged config is selected by its name, {Path(config_file).stem}"
        raise UserError(f"{source}: {problem}{_hint(problem, cfg)}") from error


def stored_cfg(checkpoint: Path, text: str | None) -> CfgNode:
    """Returns the training config of a checkpoint of either engine, as a config of the standalone engine.

    Keys that the standalone engine lacks are ignored.

    Args:
        checkpoint: checkpoint file; if ``text`` is None, ``config.yaml`` in its folder is read.
        text: config stored in the checkpoint, or None.

    Raises:
        UserError: if there is no config.
    """
    file = checkpoint.with_name("config.yaml")
    if text is None and not file.is_file():
        raise UserError(
            f"{checkpoint} contains no config, and there is no config.yaml next to it: pass config, a YAML file or "
            "the name of a recipe such as deformable_detr_r50_50ep (--config-file on the command line)"
        )
    cfg = get_cfg("standalone")
    known = {key for key, _ in leaves(cfg)}
    for key, value in leaves(CfgNode.load_cfg(file.read_text(encoding="utf-8") if text is None else text)):
        if key in known:
            *sections, name = key.split(".")
            reduce(lambda node, section: node[section], sections, cfg)[name] = value
    return cfg


def _split_words(options: Sequence[str]) -> list[str]:
    """Converts ``KEY VALUE`` and ``KEY=VALUE`` to ``[key, value, …]``, and the name of a single data set to a tuple."""
    words: list[str] = []
    for word in options:
        key, equals, value = word.partition("=")
        if len(words) % 2 == 0 and equals:
            words += [key, value]
        else:
            words.append(word)
        if (
            len(words) % 2 == 0
            and words[-2] in ("DATASETS.TRAIN", "DATASETS.TEST")
            and re.fullmatch(r"[\w.-]+", words[-1])
        ):
            words[-1] = repr((words[-1],))
    return words


def _hint(problem: str, cfg: CfgNode) -> str:
    """Returns a remedy to append to an error message of yacs, or ""."""
    if match := re.search(r"Non-existent (?:config )?key: (\S+)", problem):
        return did_you_mean(match[1], (key for key, _ in leaves(cfg)))
    if "<class 'float'> vs. <class 'int'>" in problem:
        return "; write the number with a decimal point, such as 2.0"
    return ""


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Returns a suggestion of the most similar key to append to an error message, or ""."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def leaves(node: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields the dotted key and value of each leaf of a nested config."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def choose_device(wanted: str, num_gpus: int | None) -> str:
    """Resolves ``MODEL.DEVICE``.

    Args:
        wanted: value of the key; ``auto`` selects a GPU, or the CPU if there is none or ``num_gpus`` is 0.
        num_gpus: value of ``--num-gpus``; None if absent.

    Raises:
        UserError: for an unknown device, or if fewer GPUs are available; the CPU is never used as a fallback.
    """
    available = torch.cuda.device_count()
    if wanted == "auto":
        if num_gpus is None and not available:
            print("No GPU found: running on the CPU.", flush=True)
        wanted = "cuda" if num_gpus or (num_gpus is None and available) else "cpu"
    kind, _, index = wanted.partition(":")
    if kind not in _DEVICES or not (index or "0").isdigit():
        raise UserError(f"MODEL.DEVICE must be auto, cuda, cuda:N or cpu, got {wanted!r}")
    if kind == "cuda" and max(num_gpus or 1, int(index or 0) + 1) > available:
        raise UserError(
            f"MODEL.DEVICE {wanted} with --num-gpus {num_gpus or 1} requires more GPUs than the {available} available: "
            "lower --num-gpus, or add MODEL.DEVICE cpu to run the same number of processes on the CPU"
        )
    return wanted


def processes_per_machine(args: Namespace) -> int:
    """Returns the number of processes on each machine: one per GPU, at least one."""
    return max(args.num_gpus or 1, 1)


def _check_processes(cfg: CfgNode, args: Namespace) -> None:
    processes = processes_per_machine(args)
    if processes > 1 and ":" in cfg.MODEL.DEVICE:
        raise UserError(f"MODEL.DEVICE {cfg.MODEL.DEVICE} is one GPU, but --num-gpus is {processes}: set it to cuda")
    total, batch_size = processes * args.num_machines, cfg.SOLVER.IMS_PER_BATCH
    # If set, Detectron2 scales the batch size with the number of processes.
    is_scaled = cfg.SOLVER.get("REFERENCE_WORLD_SIZE", 0)
    if not (args.eval_only or is_scaled) and (batch_size < 1 or batch_size % total):
        raise UserError(f"SOLVER.IMS_PER_BATCH must be a positive multiple of the {total} processes, got {batch_size}")
    if total > 1:
        parse_address(args.dist_url, args.num_machines)

"""Loads the config of a run: merges the file and options, selects the device and checks the number of processes."""

import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import distributed
from yaml import YAMLError

from ..errors import UserError, did_you_mean
from ..training.launch import parse_address
from .keys import get_cfg
from .recipes import find_config, names

_DEVICES = ("cuda", "cpu")
_TYPE_MISMATCH = re.compile(  # message of yacs
    r"Type mismatch \(<class '([\w.]+)'> vs. <class '([\w.]+)'>\) with values \((.*) vs. (.*)\) for config key: (\S+)",
    re.DOTALL,
)


def load_cfg(engine: str, args: Namespace) -> CfgNode:
    """Returns the config of a command line, with ``MODEL.DEVICE`` resolved, after all checks that require no data.

    Args:
        engine: ``"detectron2"`` or ``"standalone"``.
        args: arguments of `cli.arguments.argument_parser`; under ``torchrun``, its numbers of processes and machines
            are set in them.

    Raises:
        UserError: for an invalid key or option; the message contains it.
    """
    _read_torchrun(args)
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
        raise UserError("DATASETS.TRAIN is empty: select a config (--config-file) and data (--train-data JSON IMAGES)")
    _check_epochs(cfg, args)
    if args.eval_only:
        cfg.DATASETS.TRAIN = ()  # the training data need not exist
    return cfg


def _read_torchrun(args: Namespace) -> None:
    """Sets the numbers of processes and machines, the machine's rank and the address to those of ``torchrun``."""
    if not distributed.is_torchelastic_launched():
        return
    if args.num_gpus is not None or args.num_machines != 1 or args.machine_rank or args.dist_url != "auto":
        raise UserError(
            "torchrun sets the number of processes and machines: omit --num-gpus, --num-machines, --machine-rank and "
            "--dist-url (on CPUs, set MODEL.DEVICE cpu)"
        )
    keys = {"num_gpus": "LOCAL_WORLD_SIZE", "num_machines": "GROUP_WORLD_SIZE", "machine_rank": "GROUP_RANK"}
    vars(args).update({name: int(os.environ[key]) for name, key in keys.items()})
    args.dist_url = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


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
    return [*(word for key, value in flags.items() if value is not None for word in (key, value)), *(args.opts)]


def output_dir(engine: str, args: Namespace) -> Path:
    """Returns the output folder of a command line that `load_cfg` accepted."""
    cfg = get_cfg(engine)
    merge(cfg, args.config_file, _options(args))
    return Path(cfg.OUTPUT_DIR)


def _add_registered(cfg: CfgNode, args: Namespace) -> None:
    """Adds the data sets of the command line to the config, and selects them if the config uses none of them.

    Raises:
        UserError: if the config uses no data set of ``--register``, and these are not a pair NAME_train and NAME_val;
            or for ``--val-data`` without ``--train-data`` or ``--eval-only``.
    """
    given = {name: [name, os.path.abspath(file), os.path.abspath(images)] for name, file, images in args.register or []}
    files = {split: vars(args)[f"{split}_data"] for split in ("train", "val") if vars(args)[f"{split}_data"]}
    names = {split: os.path.basename(file) for split, (file, _) in files.items()}
    if len(set(names.values())) < len(names):
        names = {split: f"{name} ({split})" for split, name in names.items()}
    given |= {names[split]: [names[split], *map(os.path.abspath, item)] for split, item in files.items()}
    cfg.DATASETS.REGISTER = [*(item for item in cfg.DATASETS.REGISTER if item[0] not in given), *given.values()]
    if files:
        if "train" not in files and not args.eval_only:
            raise UserError("--val-data requires --train-data or --eval-only")
        cfg.DATASETS.TRAIN = tuple(name for split, name in names.items() if split == "train")
        cfg.DATASETS.TEST = tuple(name for split, name in names.items() if split == "val")
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
        raise UserError(f"{source}: {_rewrite(problem, cfg)}") from error


def merge_known(cfg: CfgNode, content: Mapping[str, Any], section: str = "") -> None:
    """Merges a nested mapping in place; keys that the config lacks are ignored. Integers are accepted as floats.

    Args:
        cfg: config of an engine.
        content: values of the keys of a section.
        section: dotted key of the section, with a dot at its end; empty: the whole config.

    Raises:
        UserError: for a value of a wrong type; the message contains the key.
    """
    node = reduce(lambda node, name: node[name], section.split(".")[:-1], cfg)
    for name in node.keys() & content.keys():
        value, default, key = content[name], node[name], f"{section}{name}"
        if isinstance(value, Mapping) and isinstance(default, CfgNode):
            merge_known(cfg, value, f"{key}.")
        elif type(value) is type(default) or (type(value), type(default)) == (int, float):
            node[name] = value
        else:
            try:
                cfg.merge_from_list([key, value])  # converts lists and literals
            except (AssertionError, ValueError) as error:
                kind = "a section" if isinstance(default, CfgNode) else f"of type {type(default).__name__}"
                raise UserError(f"{key} must be {kind}, got {value!r}") from error


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


def _rewrite(problem: str, cfg: CfgNode) -> str:
    """Adds remedies to error messages of yacs, and rewrites those about types."""
    if match := re.search(r"Non-existent (?:config )?key: (\S+)", problem):
        return problem + did_you_mean(match[1], (key for key, _ in leaves(cfg)))
    if match := _TYPE_MISMATCH.match(problem):
        wanted, given, current, value, key = match.groups()
        remedy = "; write the number with a decimal point, such as 2.0" if (wanted, given) == ("float", "int") else ""
        if wanted.endswith("CfgNode"):
            return f"{key} is a section, not a key: name the key within it"
        return f"{key} must be of type {wanted}, like {current}, got {value} ({given}){remedy}"
    return problem


def leaves(node: dict[str, Any], separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Yields the key, such as ``MODEL.DETR.NUM_CLASSES``, and the value of each leaf of a nested dictionary."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from ((f"{key}{separator}{name}", leaf) for name, leaf in leaves(value, separator))
        else:
            yield str(key), value


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
    reference = cfg.SOLVER.get("REFERENCE_WORLD_SIZE", 0)
    if not (args.eval_only or reference) and (batch_size < 1 or batch_size % total):
        raise UserError(f"SOLVER.IMS_PER_BATCH must be a positive multiple of the {total} processes, got {batch_size}")
    if not args.eval_only:
        check_micro_batches(cfg, reference or total)
    if total > 1:
        parse_address(args.dist_url, args.num_machines)


def check_micro_batches(cfg: CfgNode, processes: int) -> None:
    """Raises `UserError` if the batches of ``processes`` processes are not multiples of the accumulation steps."""
    steps, batch_size = cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.IMS_PER_BATCH
    if steps > 1 and batch_size % (processes * steps):
        raise UserError(
            f"SOLVER.IMS_PER_BATCH must be a multiple of {processes} processes x SOLVER.ACCUMULATION_STEPS {steps}, "
            f"got {batch_size}: it is the number of images in all micro-batches of all processes"
        )

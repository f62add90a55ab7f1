"""Configuration of a run, which consists of the configurations of its parts."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from fvcore.common.config import CfgNode

from ..checkpoint import LoadOptions
from ..data.config import DataConfig
from ..errors import ArgumentError, PositiveInt, Range, UserError, check_choice, check_ranges
from ..evaluation import EvaluationConfig
from ..modeling import CriterionConfig, Detector, DetectorConfig, SetCriterion
from ..training import AugmentationPolicy, TrainingConfig
from ..training.output_dir import check_output_dir
from .checkpoint import load_options
from .data import data_config
from .evaluation import evaluation_config
from .keys import check_other_ranges
from .loading import processes_per_machine
from .model import (
    BACKBONES,
    BackboneConfig,
    backbone_config,
    criterion_config,
    criterion_of,
    detector_config,
    detector_of,
)
from .reading import naming_keys, read
from .training import augmentation_policy, training_config

PROCESS_KEYS = {
    "output_dir": "OUTPUT_DIR",
    "device": "MODEL.DEVICE",
    "weights": "MODEL.WEIGHTS",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "amp": "SOLVER.AMP.ENABLED",
    "accumulation_steps": "SOLVER.ACCUMULATION_STEPS",
    "strategy": "SOLVER.STRATEGY",
    "seed": "SEED",
    "cudnn_benchmark": "CUDNN_BENCHMARK",
    "float32_precision": "FLOAT32_PRECISION",
}


@dataclass(frozen=True)
class ProcessConfig:
    """Files, device, precision and seed of the processes of a run.

    Attributes:
        output_dir: output folder of the run.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        weights: file or name of the initial weights; empty: none.
        pixel_mean, pixel_std: normalization of the image channels.
        amp: whether to train in mixed precision.
        accumulation_steps: number of micro-batches of each process's training batch, computed one after the other.
        strategy: ``"ddp"``, or ``"fsdp"`` to shard parameters and optimizer state over the processes of a training run.
        seed: seed of the run; negative: random.
        cudnn_benchmark: value of ``torch.backends.cudnn.benchmark``.
        float32_precision: argument of `torch.set_float32_matmul_precision`; empty: PyTorch's default.
    """

    output_dir: str
    device: str
    weights: str
    pixel_mean: Annotated[tuple[float, ...], Range()]
    pixel_std: Annotated[tuple[float, ...], Range(above=0)]
    amp: bool
    accumulation_steps: PositiveInt
    strategy: str
    seed: Annotated[int, Range(high=2**31 - 1)]
    cudnn_benchmark: bool
    float32_precision: str

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ArgumentError("output_dir", "must be a folder, got ''")
        check_ranges(ProcessConfig, vars(self))
        for name in ("pixel_mean", "pixel_std"):
            if len(getattr(self, name)) != 3:
                raise ArgumentError(name, f"must have three values, one for each channel, got {getattr(self, name)}")
        check_choice("strategy", self.strategy, ("ddp", "fsdp"))
        check_choice("float32_precision", self.float32_precision, ("", "highest", "high", "medium"))


@dataclass(frozen=True)
class Run:
    """Configuration of a run, which an engine converts to its own trainer.

    Attributes:
        eval_only: whether to evaluate without training.
        resume: whether to continue from the last checkpoint of the output folder.
        overwrite: whether a new run may remove the files of an earlier one.
        processes: number of processes on each machine.
        machines: number of machines.
        process: files, device, precision and seed.
        detector, criterion: model and losses.
        backbone: backbone; None for a backbone of Detectron2's registry.
        loading: options for loading ``MODEL.WEIGHTS``.
        data: data sets and loaders.
        evaluation: postprocessing and metrics.
        test_augmentation: resizing of evaluation images.
        training, train_augmentation: options of training; None with ``eval_only``.
        cfg_text: config in YAML format.
    """

    eval_only: bool
    resume: bool
    overwrite: bool
    processes: int
    machines: int
    process: ProcessConfig
    detector: DetectorConfig
    criterion: CriterionConfig
    backbone: BackboneConfig | None
    loading: LoadOptions
    data: DataConfig
    evaluation: EvaluationConfig
    test_augmentation: AugmentationPolicy
    training: TrainingConfig | None
    train_augmentation: AugmentationPolicy | None
    cfg_text: str

    @property
    def output_dir(self) -> Path:
        """Output folder of the run."""
        return Path(self.process.output_dir)

    def build_detector(self) -> Detector:
        """Builds the detector; errors refer to config keys."""
        assert self.backbone is not None
        return detector_of(self.detector, self.backbone.build())

    def build_criterion(self) -> SetCriterion:
        """Builds the criterion; errors refer to config keys."""
        return criterion_of(self.criterion)


def process_config(cfg: CfgNode) -> ProcessConfig:
    """Reads the configuration of files, device, precision and seed."""
    return read(ProcessConfig, cfg, PROCESS_KEYS)


def check_is_local(config: ProcessConfig) -> None:
    """Raises `UserError` if the output folder is a URL, which only Detectron2's own trainers support."""
    if "://" in config.output_dir:
        raise UserError(f"OUTPUT_DIR must be a local folder, got {config.output_dir!r}: copy the files after the run")


def check_run(cfg: CfgNode, args: Namespace) -> None:
    """Checks all values of a config and the output folder before the data sets are read.

    The number of classes may still be unknown.

    Raises:
        UserError: as in `read_run`.
    """
    check_other_ranges(cfg)
    cfg = cfg.clone()
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES or 1
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR" and "NUM_DECAYS" in cfg.SOLVER:
        cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"  # Detectron2's schedule has the same keys and NUM_DECAYS
    run = read_run(cfg, args)
    check_is_local(run.process)
    if run.process.strategy == "fsdp" and run.detector.freeze_detector:
        # No output of a frozen detector has a gradient, so that FSDP would not reduce those of the mask head.
        raise UserError("SOLVER.STRATEGY must be ddp with MODEL.DETR.MASKS.FREEZE_DETECTOR True, got fsdp")
    if args.resume or args.machine_rank == 0:  # a new run on the first machine may have written to a shared folder
        with naming_keys(PROCESS_KEYS):
            may_overwrite = args.overwrite or args.eval_only
            weights = "" if args.eval_only else run.process.weights
            check_output_dir(run.output_dir, resume=args.resume, overwrite=may_overwrite, weights=weights)
    run.build_criterion()
    if run.backbone is not None:
        with torch.device("meta"):
            run.build_detector()


def read_run(cfg: CfgNode, args: Namespace) -> Run:
    """Reads the configuration of a run.

    Args:
        cfg: config with resolved device and number of classes.
        args: from `cli.arguments.argument_parser`.

    Raises:
        UserError: for invalid values; the message contains the key.
    """
    return Run(
        eval_only=args.eval_only,
        resume=args.resume,
        overwrite=args.overwrite,
        processes=processes_per_machine(args),
        machines=args.num_machines,
        process=process_config(cfg),
        detector=detector_config(cfg),
        criterion=criterion_config(cfg),
        backbone=backbone_config(cfg) if cfg.MODEL.BACKBONE.NAME in BACKBONES else None,
        loading=load_options(cfg, for_evaluation=args.eval_only),
        data=data_config(cfg, eval_only=args.eval_only),
        evaluation=evaluation_config(cfg),
        test_augmentation=augmentation_policy(cfg, is_train=False),
        training=None if args.eval_only else training_config(cfg),
        train_augmentation=None if args.eval_only else augmentation_policy(cfg, is_train=True),
        cfg_text=cfg.dump(),
    )

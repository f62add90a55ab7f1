"""Configuration of a run: the dataclasses of all layers and further settings."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from fvcore.common.config import CfgNode

from ..data.config import DataConfig
from ..errors import ArgumentError
from ..evaluation import EvaluationConfig
from ..modeling import CriterionConfig, DetectorConfig
from ..training import AugmentationPolicy, ScheduleConfig, TrainingConfig
from .data import data_config
from .evaluation import evaluation_config
from .loading import processes_per_machine
from .model import criterion_config, detector_config
from .reading import read
from .training import augmentation_policy, schedule_config, training_config

_KEYS = {
    "output_dir": "OUTPUT_DIR",
    "device": "MODEL.DEVICE",
    "weights": "MODEL.WEIGHTS",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "amp": "SOLVER.AMP.ENABLED",
    "seed": "SEED",
    "cudnn_benchmark": "CUDNN_BENCHMARK",
    "float32_precision": "FLOAT32_PRECISION",
}


@dataclass(frozen=True)
class Settings:
    """Settings of a run that belong to no layer.

    Attributes:
        output_dir: folder for all files of the run.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        weights: file or name of the initial weights; empty: none.
        pixel_mean, pixel_std: normalisation of the image channels.
        amp: train in mixed precision.
        seed: seed of the run; negative: random.
        cudnn_benchmark: value of ``torch.backends.cudnn.benchmark``.
        float32_precision: argument of `torch.set_float32_matmul_precision`; empty: PyTorch's default.
    """

    output_dir: str
    device: str
    weights: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    amp: bool
    seed: int
    cudnn_benchmark: bool
    float32_precision: str

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ArgumentError("output_dir", "must name a folder, got ''")


@dataclass(frozen=True)
class Run:
    """Configuration of a run, which an engine converts to its own trainer.

    Attributes:
        eval_only: evaluate without training.
        resume: continue from the last checkpoint of the output folder.
        processes: number of processes on each machine.
        machines: number of machines.
        settings: folder, device and further settings.
        detector, criterion: model and losses.
        data: data sets and loaders.
        evaluation: postprocessing and metrics.
        test_augmentation: resizing of evaluation images.
        training, schedule, train_augmentation: options of the training; None with ``eval_only``.
        cfg_text: the config as YAML.
    """

    eval_only: bool
    resume: bool
    processes: int
    machines: int
    settings: Settings
    detector: DetectorConfig
    criterion: CriterionConfig
    data: DataConfig
    evaluation: EvaluationConfig
    test_augmentation: AugmentationPolicy
    training: TrainingConfig | None
    schedule: ScheduleConfig | None
    train_augmentation: AugmentationPolicy | None
    cfg_text: str

    @property
    def output_dir(self) -> Path:
        """Folder for all files of the run."""
        return Path(self.settings.output_dir)


def read_run(cfg: CfgNode, args: Namespace) -> Run:
    """Reads the configuration of a run.

    Args:
        cfg: config with resolved device and number of classes.
        args: from `cli.arguments.argument_parser`.

    Raises:
        UserError: for invalid values; the message names the key.
    """
    return Run(
        eval_only=args.eval_only,
        resume=args.resume,
        processes=processes_per_machine(args),
        machines=args.num_machines,
        settings=read(Settings, cfg, _KEYS),
        detector=detector_config(cfg),
        criterion=criterion_config(cfg),
        data=data_config(cfg, eval_only=args.eval_only),
        evaluation=evaluation_config(cfg),
        test_augmentation=augmentation_policy(cfg, is_train=False),
        training=None if args.eval_only else training_config(cfg),
        schedule=None if args.eval_only else schedule_config(cfg),
        train_augmentation=None if args.eval_only else augmentation_policy(cfg, is_train=True),
        cfg_text=cfg.dump(),
    )

"""Reads the configuration of training."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from ..errors import UserError
from ..training import (
    AugmentationPolicy,
    BestCheckpointConfig,
    CallbacksConfig,
    EarlyStoppingConfig,
    EmaConfig,
    GradientClip,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
)
from .reading import T, get, naming_keys, read

logger = logging.getLogger(__name__)

OPTIMIZER_KEYS = {
    "name": "SOLVER.OPTIMIZER",
    "base_lr": "SOLVER.BASE_LR",
    "backbone_multiplier": "SOLVER.BACKBONE_MULTIPLIER",
    "sampling_multiplier": "SOLVER.SAMPLING_MULTIPLIER",
    "weight_decay": "SOLVER.WEIGHT_DECAY",
    "momentum": "SOLVER.MOMENTUM",
    "nesterov": "SOLVER.NESTEROV",
}
RESUME_KEYS = {
    "name": "SOLVER.OPTIMIZER",
    "freeze_at": "MODEL.BACKBONE.FREEZE_AT",
    "freeze_detector": "MODEL.DETR.MASKS.FREEZE_DETECTOR",
    "output_dir": "OUTPUT_DIR",
}
CLIP_KEYS = {
    "kind": "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
    "value": "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "norm_type": "SOLVER.CLIP_GRADIENTS.NORM_TYPE",
}
SCHEDULE_KEYS = {
    "name": "SOLVER.LR_SCHEDULER_NAME",
    "max_iter": "SOLVER.MAX_ITER",
    "base_lr": "SOLVER.BASE_LR",
    "base_lr_end": "SOLVER.BASE_LR_END",
    "steps": "SOLVER.STEPS",
    "gamma": "SOLVER.GAMMA",
    "warmup_factor": "SOLVER.WARMUP_FACTOR",
    "warmup_iters": "SOLVER.WARMUP_ITERS",
    "warmup_method": "SOLVER.WARMUP_METHOD",
    "rescale_interval": "SOLVER.RESCALE_INTERVAL",
}
EMA_KEYS = {"decay": "SOLVER.EMA.DECAY"}
BEST_CHECKPOINT_KEYS = {"metric": "TEST.BEST_CHECKPOINT.METRIC", "mode": "TEST.BEST_CHECKPOINT.MODE"}
EARLY_STOPPING_KEYS = {
    "metric": "TEST.EARLY_STOPPING.METRIC",
    "patience": "TEST.EARLY_STOPPING.PATIENCE",
    "min_delta": "TEST.EARLY_STOPPING.MIN_DELTA",
}
CALLBACKS_KEYS = {
    "eval_period": "TEST.EVAL_PERIOD",
    "checkpoint_period": "SOLVER.CHECKPOINT_PERIOD",
    "checkpoint_keep": "SOLVER.CHECKPOINT_KEEP",
    "attention_entropy": "TEST.ATTENTION_ENTROPY",
}
EVALUATION_AUGMENTATION_KEYS = {
    "min_sizes": "INPUT.MIN_SIZE_TEST",
    "max_size": "INPUT.MAX_SIZE_TEST",
}
TRAINING_AUGMENTATION_KEYS = {
    "min_sizes": "INPUT.MIN_SIZE_TRAIN",
    "max_size": "INPUT.MAX_SIZE_TRAIN",
    "crop_resize": "INPUT.CROP.RESIZE",
    "crop_range": "INPUT.CROP.SIZE",
}

# Detectron2's keys for norms and biases must keep these defaults: as in the papers, norms and biases have the learning
# rate and weight decay of weights.
_UNSUPPORTED = {
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_BIAS": None,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
}


def optimizer_config(cfg: CfgNode) -> OptimizerConfig:
    """Reads the configuration of the optimizer and gradient clipping."""
    for key, default in _UNSUPPORTED.items():
        if (value := get(cfg, key)) != default:
            raise UserError(
                f"{key} must be Detectron2's default {default!r}, got {value!r}: norms and biases have the same "
                "learning rate and weight decay as weights, as in the papers"
            )
    clip = _read_if_enabled(GradientClip, cfg, "SOLVER.CLIP_GRADIENTS", CLIP_KEYS)
    return read(OptimizerConfig, cfg, OPTIMIZER_KEYS, clip=clip, fused=not get(cfg, "SOLVER.AMP.ENABLED"))


def schedule_config(cfg: CfgNode) -> ScheduleConfig:
    """Reads the configuration of the learning-rate schedule."""
    return read(ScheduleConfig, cfg, SCHEDULE_KEYS)


def callbacks_config(cfg: CfgNode) -> CallbacksConfig:
    """Reads the configuration of EMA, best checkpoint, early stopping, and periodic evaluations and checkpoints."""
    best = _read_if_enabled(BestCheckpointConfig, cfg, "TEST.BEST_CHECKPOINT", BEST_CHECKPOINT_KEYS)
    stopping = _read_if_enabled(EarlyStoppingConfig, cfg, "TEST.EARLY_STOPPING", EARLY_STOPPING_KEYS)
    for section, callback in (("TEST.BEST_CHECKPOINT", best), ("TEST.EARLY_STOPPING", stopping)):
        if callback and not cfg.DATASETS.TEST:
            raise UserError(
                f"{section}.ENABLED True requires a data set to compute {callback.metric}: set DATASETS.TEST"
            )
        if callback and cfg.TEST.EVAL_PERIOD < 1:
            raise UserError(
                f"{section}.ENABLED True requires evaluations during training: TEST.EVAL_PERIOD must be a number of "
                f"iterations, got {cfg.TEST.EVAL_PERIOD}"
            )
    ema = _read_if_enabled(EmaConfig, cfg, "SOLVER.EMA", EMA_KEYS)
    if ema and "PRECISE_BN" in cfg.TEST and cfg.TEST.PRECISE_BN.ENABLED:  # a key of Detectron2's engine
        raise UserError(
            "SOLVER.EMA.ENABLED and TEST.PRECISE_BN.ENABLED cannot both be True: Detectron2 computes batch norm "
            "statistics of the trained weights instead of the averaged ones. SOLVER.EMA also averages the statistics"
        )
    if cfg.TEST.ATTENTION_ENTROPY and not cfg.MODEL.DETR.DEC_LAYERS:
        raise UserError("TEST.ATTENTION_ENTROPY must be 0 with MODEL.DETR.DEC_LAYERS 0: it is that of the decoder")
    return read(CallbacksConfig, cfg, CALLBACKS_KEYS, ema=ema, best_checkpoint=best, early_stopping=stopping)


def training_config(cfg: CfgNode) -> TrainingConfig:
    """Reads the configuration of a training run except its data."""
    return TrainingConfig(optimizer_config(cfg), schedule_config(cfg), callbacks_config(cfg))


def set_epochs(cfg: CfgNode, epochs: int, num_images: int, options: Sequence[str]) -> None:
    """Sets the number of iterations, and the period of evaluations and checkpoints, from a number of epochs.

    The period is a number of epochs with at least 100 iterations. ``SOLVER.STEPS`` are scaled with ``SOLVER.MAX_ITER``,
    and ``SOLVER.WARMUP_ITERS`` is limited to a tenth of it.

    Args:
        cfg: config, modified in place.
        epochs: number of passes over the training images.
        num_images: number of training images.
        options: keys and values of the command line; these keys are not modified.
    """
    given = {word.partition("=")[0] for word in options}
    per_epoch = max(1, round(num_images / cfg.SOLVER.IMS_PER_BATCH))
    length, before = epochs * per_epoch, cfg.SOLVER.MAX_ITER
    period = min(length, per_epoch * math.ceil(100 / per_epoch))
    values: dict[str, object] = {
        "SOLVER.MAX_ITER": length,
        "SOLVER.STEPS": tuple(dict.fromkeys(max(1, round(step * length / before)) for step in cfg.SOLVER.STEPS)),
        "SOLVER.WARMUP_ITERS": min(cfg.SOLVER.WARMUP_ITERS, length // 10),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "TEST.EVAL_PERIOD": period if cfg.DATASETS.TEST else 0,
    }
    changes = {key: value for key, value in values.items() if key not in given}
    cfg.merge_from_list([word for pair in changes.items() for word in pair])
    text = ", ".join(f"{key} {value}" for key, value in changes.items())
    logger.info("--epochs %d: %d images in batches of %d; %s", epochs, num_images, cfg.SOLVER.IMS_PER_BATCH, text)


def log_start(cfg: CfgNode, *, resume: bool) -> None:
    """Warns about frozen parts of a random backbone or, with ``resume``, about another number of iterations.

    Args:
        cfg: config of a training run, with its final number of iterations.
        resume: whether the run continues from the last checkpoint in ``OUTPUT_DIR``, which has the earlier config.
    """
    if resume:
        path = Path(cfg.OUTPUT_DIR, "config.yaml")
        try:
            before = yaml.safe_load(path.read_text(encoding="utf-8"))["SOLVER"]["MAX_ITER"]
        except (OSError, KeyError, TypeError, yaml.YAMLError):  # not the config of a run: nothing to compare
            before = None
        if before not in (None, cfg.SOLVER.MAX_ITER):
            logger.warning(
                "Resuming with the config's SOLVER.MAX_ITER %d, not the %d of %s: to keep it, resume with "
                "--config-file %s, or the same --epochs",
                cfg.SOLVER.MAX_ITER, before, path, path,
            )  # fmt: skip
        return
    frozen = {"MODEL.BACKBONE.FREEZE_AT": cfg.MODEL.BACKBONE.FREEZE_AT} if cfg.MODEL.BACKBONE.FREEZE_AT > 0 else {}
    if "resnet" in cfg.MODEL.BACKBONE.NAME and cfg.MODEL.RESNETS.NORM == "FrozenBN":
        frozen["MODEL.RESNETS.NORM"] = "FrozenBN"
    if frozen and not cfg.MODEL.WEIGHTS:
        logger.warning(
            "MODEL.WEIGHTS is empty, but %s: parts of the random backbone are not trained. Set MODEL.WEIGHTS or, to "
            "train from scratch, use BN or GN as norm, and do not freeze stages",
            " and ".join(f"{key} is {value}" for key, value in frozen.items()),
        )  # fmt: skip


def describe_training(cfg: CfgNode) -> str:
    """Returns the training data sets and the recipe in one line."""
    return f"{', '.join(cfg.DATASETS.TRAIN)}: {describe_recipe(training_config(cfg), cfg.SOLVER.IMS_PER_BATCH)}"


def describe_recipe(config: TrainingConfig, batch_size: int, num_images: int | None = None) -> str:
    """Returns the training recipe in one line; see `log_recipe` for the arguments."""
    optimizer, schedule = config.optimizer, config.schedule
    steps = [step for step in schedule.steps if step < schedule.max_iter]
    decay = f"times {schedule.gamma:g} at {', '.join(map(str, steps))}" if steps else "constant"
    if schedule.name == "WarmupCosineLR":
        decay = f"cosine to {schedule.base_lr_end:g}"
    epochs = f" = {schedule.max_iter * batch_size / num_images:.3g} epochs of {num_images}" if num_images else ""
    clip = optimizer.clip.value if optimizer.clip else 0.0
    clipping = f"gradients clipped at {clip:g}" if clip else "no clipping"
    return (
        f"{schedule.max_iter} iterations of {batch_size} images{epochs}; {optimizer.name}, learning rate "
        f"{optimizer.base_lr:g} (backbone times {optimizer.backbone_multiplier:g}, sampling offsets times "
        f"{optimizer.sampling_multiplier:g}), warm-up of {schedule.warmup_iters} iterations, then {decay}; "
        f"weight decay {optimizer.weight_decay:g}, {clipping}"
    )


def log_recipe(config: TrainingConfig, batch_size: int, num_images: int | None) -> None:
    """Logs the training recipe in one line, and warns if the warm-up or steps do not match the number of iterations.

    Args:
        config: optimizer and schedule.
        batch_size: images per iteration.
        num_images: number of training images; None if unknown.
    """
    logger.info("Recipe: %s", describe_recipe(config, batch_size, num_images))
    schedule = config.schedule
    steps = [step for step in schedule.steps if step < schedule.max_iter]
    if 2 * schedule.warmup_iters > schedule.max_iter:
        ends = 0, min(schedule.warmup_iters, schedule.max_iter - 1)
        logger.warning(
            "SOLVER.WARMUP_ITERS %d is more than half of SOLVER.MAX_ITER %d: the learning rate is at most %.3g "
            "(SOLVER.BASE_LR %g); set SOLVER.WARMUP_ITERS to a small fraction of SOLVER.MAX_ITER",
            schedule.warmup_iters, schedule.max_iter,
            schedule.base_lr * max(map(schedule.factor, ends)), schedule.base_lr,
        )  # fmt: skip
    elif steps and steps[0] <= schedule.warmup_iters:
        logger.warning(
            "SOLVER.STEPS %s begin before the end of SOLVER.WARMUP_ITERS %d", schedule.steps, schedule.warmup_iters
        )
    if len(steps) < len(schedule.steps) and schedule.name == "WarmupMultiStepLR":
        logger.warning(
            "SOLVER.STEPS %s are not all below SOLVER.MAX_ITER %d: the learning rate only drops at %s",
            schedule.steps, schedule.max_iter, steps or "no iteration",
        )  # fmt: skip


def augmentation_policy(cfg: CfgNode, is_train: bool) -> AugmentationPolicy:
    """Reads the configuration of the augmentation for training or evaluation."""
    source = cfg.INPUT
    if not is_train:
        with naming_keys(EVALUATION_AUGMENTATION_KEYS):
            return AugmentationPolicy((source.MIN_SIZE_TEST,), source.MAX_SIZE_TEST)
    flip = _choose(cfg, "INPUT.RANDOM_FLIP", "horizontal", "none") == "horizontal"
    sizes = tuple(source.MIN_SIZE_TRAIN)
    if _choose(cfg, "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "range") == "range" and sizes:
        sizes = tuple(range(min(sizes), max(sizes) + 1))
    crop = {}
    if source.CROP.ENABLED:
        _choose(cfg, "INPUT.CROP.TYPE", "absolute_range")
        crop = {"crop_resize": tuple(source.CROP.RESIZE), "crop_range": tuple(source.CROP.SIZE)}
    with naming_keys(TRAINING_AUGMENTATION_KEYS):
        return AugmentationPolicy(
            min_sizes=sizes,
            max_size=source.MAX_SIZE_TRAIN,
            flip_prob=0.5 if flip else 0.0,
            crop_prob=0.5 if crop else 0.0,
            **crop,
        )


def _choose(cfg: CfgNode, key: str, *choices: str) -> object:
    """Returns the value of a key, which must be one of ``choices``."""
    value = get(cfg, key)
    if value not in choices:
        raise UserError(f"{key} must be {' or '.join(choices)}, got {value!r}")
    return value


def _read_if_enabled(build: Callable[..., T], cfg: CfgNode, section: str, keys: Mapping[str, str]) -> T | None:
    return read(build, cfg, keys) if get(cfg, f"{section}.ENABLED") else None

"""Train, resume or evaluate with Lightning: what ``train_net.py`` runs in this engine."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from ..checkpoint import LoadOptions, load_weights
from ..config.checkpoint import load_options
from ..config.data import data_config
from ..config.evaluation import evaluation_config
from ..config.loading import processes_per_machine
from ..config.training import augmentation_policy, training_config
from ..evaluation import Evaluator
from ..training.callbacks import DetectorWriter
from ..training.last_checkpoint import find_last_checkpoint
from ..training.launch import launch
from .callbacks import AtomicCheckpointIO, SameStart, build_callbacks
from .data import build_training_set
from .module import DetectionModule
from .progress import JsonLogger, Progress
from .setup import Datasets, configure, load_datasets, register, set_up

logger = logging.getLogger(__name__)


def main(args: Namespace) -> dict[str, Any]:
    """Trains, or evaluates with ``args.eval_only``; config and data sets are checked before anything starts.

    Args:
        args: from ``cli.arguments.argument_parser``: config_file, opts, register, eval_only, resume,
            num_gpus (processes on this machine), num_machines, machine_rank, dist_url.

    Returns:
        Metrics in percent as Detectron2 names them, ``{"bbox": {"AP": …}}``, by data set if there are several;
        empty on machines other than the first and where ``DATASETS.TEST`` is.

    Raises:
        UserError: for input that cannot be used.
        FloatingPointError: if training diverges.
    """
    register(args)
    cfg = configure(args)
    datasets = load_datasets(args, cfg)
    # Looked up once, before any process could change what another finds.
    last = find_last_checkpoint(Path(cfg.OUTPUT_DIR), "standalone") if args.resume else None
    processes, machines = processes_per_machine(args), (args.num_machines, args.machine_rank, args.dist_url)
    return launch(_run, processes, *machines, args, cfg, datasets, last) or {}


def _run(args: Namespace, cfg: Any, datasets: Datasets, last: Path | None) -> dict[str, Any]:
    """Runs one process of the job, starting from checkpoint ``last``; returns the metrics."""
    set_up(args, cfg, datasets)
    evaluation, config = evaluation_config(cfg), data_config(cfg)
    evaluators = [
        Evaluator(datasets[name], evaluation.max_detections, evaluation.is_panoptic, config.masks)
        for name in config.test
    ]
    dataset = None
    if not args.eval_only:
        dataset = build_training_set(config, datasets, augmentation_policy(cfg, is_train=True))
    module = DetectionModule(cfg, dataset, evaluators)
    class_names = next(iter(datasets.values())).summary.class_names  # all data sets of a run have the same
    trainer = build_trainer(args, cfg, module, last, class_names)
    options = load_options(cfg, for_evaluation=args.eval_only, class_names=class_names)
    if args.eval_only:
        load_weights(module.detector, last or cfg.MODEL.WEIGHTS, options)
        trainer.validate(module, verbose=False)
    else:
        _train(args, cfg, module, trainer, last, options)
    module.tta = evaluation.tta
    if module.evaluators and module.tta is not None:
        logger.info("Evaluating with test-time augmentation (TEST.AUG)")
        trainer.validate(module, verbose=False)
    return module.metrics


def _train(
    args: Namespace, cfg: Any, module: DetectionModule, trainer: L.Trainer, last: Path | None, options: LoadOptions
) -> None:
    output_dir = Path(cfg.OUTPUT_DIR)
    if last is not None:
        logger.info("Resuming from %s", last)
    else:
        if args.resume:
            logger.info("There is no checkpoint in %s to resume from: training starts at the beginning", output_dir)
        if cfg.MODEL.WEIGHTS:
            load_weights(module.detector, cfg.MODEL.WEIGHTS, options)
    parameters = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    logger.info(
        "Training %.2f M parameters on %d images until iteration %d, on %s, seed %d",
        parameters / 1e6, len(module.dataset or ()), cfg.SOLVER.MAX_ITER, cfg.MODEL.DEVICE, module.seed,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=last, weights_only=True)
    if module.evaluators and module.evaluated_at != trainer.global_step:
        trainer.validate(module, verbose=False)


def build_trainer(
    args: Namespace, cfg: Any, module: DetectionModule, last: Path | None, class_names: tuple[str, ...]
) -> L.Trainer:
    """Lightning's trainer; its own bar, summary and checkpoints are off, ours are callbacks."""
    device, _, index = cfg.MODEL.DEVICE.partition(":")
    processes = processes_per_machine(args)
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    if cfg.SOLVER.AMP.ENABLED:
        precision = "16-mixed" if device == "cuda" else "bf16-mixed"  # float16 as in Detectron2; CPUs have bfloat16
    output_dir = Path(cfg.OUTPUT_DIR)
    strategy: DDPStrategy | str = "auto"
    if processes * args.num_machines > 1:
        strategy = DDPStrategy(
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=bool(module.detector.unused_features()),
        )
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=[int(index)] if index else processes,
        num_nodes=args.num_machines,
        strategy=strategy,
        precision=precision,
        max_steps=cfg.SOLVER.MAX_ITER,
        max_epochs=-1,
        val_check_interval=cfg.TEST.EVAL_PERIOD or cfg.SOLVER.MAX_ITER + 1,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if cfg.DATASETS.TEST else 0.0,
        num_sanity_val_steps=0,
        benchmark=cfg.CUDNN_BENCHMARK and not args.eval_only,
        use_distributed_sampler=False,  # the samplers share the images themselves
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False if args.eval_only else build_loggers(output_dir),
        callbacks=[SameStart(last), Progress(), *([] if args.eval_only else training_callbacks(cfg, class_names))],
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        default_root_dir=output_dir,
    )


def training_callbacks(cfg: Any, class_names: tuple[str, ...]) -> list[L.Callback]:
    """Builds the callbacks of a training run."""
    config = training_config(cfg)
    writer = DetectorWriter(Path(cfg.OUTPUT_DIR), cfg.dump(), class_names, is_averaged=config.ema is not None)
    return build_callbacks(config, writer, cfg.MODEL.DEVICE)


def build_loggers(output_dir: Path) -> list[Logger]:
    """``metrics.json`` always, TensorBoard where it is installed."""
    loggers: list[Logger] = [JsonLogger(output_dir / "metrics.json")]
    try:
        loggers.append(TensorBoardLogger(output_dir, name="", version=""))
    except ModuleNotFoundError:
        logger.info("TensorBoard is not installed: scalars go to metrics.json only")
    return loggers

"""Trains, resumes or evaluates with Lightning: entry point of ``train_net.py`` in this engine."""

import logging
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from fvcore.common.config import CfgNode
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from ..checkpoint import LoadOptions, load_weights, read_checkpoint
from ..config import load_cfg
from ..config.checkpoint import LOADING_KEYS
from ..config.data import data_config, load, load_instances, register_data_sets, with_classes
from ..config.reading import naming_keys
from ..config.run import PROCESS_KEYS, Run, check_run, process_config, read_run
from ..config.training import log_recipe, log_start, set_epochs
from ..data import catalog
from ..data.records import Records
from ..data.sampling import training_images
from ..engine import is_main_process
from ..evaluation import Evaluator, lvis
from ..training.callbacks import DetectorWriter
from ..training.last_checkpoint import find_last_checkpoint, is_finished, write_finished
from ..training.launch import launch
from ..training.output_dir import locked, log_unless_error
from .callbacks import AtomicCheckpointIO, EarlyStopping, ResumeCheck, RunStart, Signals, build_callbacks
from .data import build_training_set
from .module import DetectionModule
from .progress import EventLogger, JsonLogger, Progress
from .setup import set_up
from .sharding import ShardedStrategy

logger = logging.getLogger(__name__)


def main(args: Namespace) -> dict[str, Any]:
    """Trains or evaluates. Config and data sets are checked before any process starts.

    Args:
        args: from `cli.arguments.argument_parser`.

    Returns:
        Metrics in percent with Detectron2's names, ``{"bbox": {"AP": …}}``, by data set if there are several; empty
        without test sets or on machines other than the first.

    Raises:
        UserError: for invalid input in any process.
        FloatingPointError: if training diverges.
    """
    cfg = load_cfg("standalone", args)
    register_data_sets(cfg)
    check_run(cfg, args)
    with log_unless_error(Path(process_config(cfg).output_dir)):
        datasets = _load_datasets(cfg, args.eval_only)
        if args.epochs:
            num_images = sum(map(len, training_images(data_config(cfg), datasets)))
            set_epochs(cfg, args.epochs, num_images, args.opts)
        if not args.eval_only:
            log_start(cfg, resume=args.resume)
        cfg = with_classes(cfg)
        cfg.freeze()
        run = read_run(cfg, args)
        # Looked up before any process starts, so that all of them resume from the same checkpoint.
        last = _last_checkpoint(run, datasets) if run.resume else None
    address = run.machines, args.machine_rank, args.dist_url
    locks = not run.eval_only and args.machine_rank == 0 and is_main_process()
    with naming_keys(PROCESS_KEYS), locked(run.output_dir, enabled=locks):
        return launch(_run, run.processes, *address, run, datasets, last) or {}


def _load_datasets(cfg: CfgNode, eval_only: bool) -> dict[str, Records]:
    config = data_config(cfg, eval_only=eval_only)
    datasets = {name: load(catalog.get(name), config) for name in dict.fromkeys([*config.train, *config.test])}
    for name in config.test:
        if datasets[name].summary.is_lvis:
            lvis.check_installed(name)
    return datasets


def _last_checkpoint(run: Run, datasets: dict[str, Records]) -> Path | None:
    class_names = next(iter(datasets.values())).summary.class_names
    return find_last_checkpoint(run.output_dir, "standalone", class_names, for_evaluation=run.eval_only)


def _run(run: Run, datasets: dict[str, Records], last: Path | None) -> dict[str, Any]:
    """Runs one process of the job, starting from checkpoint ``last``; returns the metrics."""
    set_up(run, [records.summary for records in datasets.values()])
    evaluation = run.evaluation
    evaluators = [
        Evaluator(records, evaluation.max_detections, evaluation.is_panoptic, load_instances(records, run.data))
        for records in map(datasets.__getitem__, run.data.test)
    ]
    dataset = build_training_set(run.data, datasets, run.train_augmentation) if run.train_augmentation else None
    module = DetectionModule(run, run.build_detector(), run.build_criterion(), dataset, evaluators)
    class_names = next(iter(datasets.values())).summary.class_names  # equal in all data sets of a run
    trainer = build_trainer(run, module, last, class_names)
    options = replace(run.loading, class_names=class_names)
    if run.eval_only:
        with naming_keys(LOADING_KEYS):
            load_weights(module.detector, last or run.process.weights, options)
        trainer.validate(module, verbose=False)
    else:
        _train(run, module, trainer, last, options)
    module.tta = evaluation.tta
    if module.metrics and module.tta is not None:
        logger.info("Evaluating with test-time augmentation (TEST.AUG)")
        trainer.validate(module, verbose=False)
    if not run.eval_only and trainer.is_global_zero:
        write_finished(run.output_dir)
    return module.metrics


def _train(run: Run, module: DetectionModule, trainer: L.Trainer, last: Path | None, options: LoadOptions) -> None:
    """Trains and evaluates, unless the run that is resumed is finished."""
    if last is not None:
        checkpoint = read_checkpoint(last, mmap=True)
        module.check_checkpoint(checkpoint)
        module.on_load_checkpoint(checkpoint)  # also called by Lightning, after the log message
        if _is_finished(checkpoint, last, trainer, evaluates=bool(module.evaluators)):
            return
    elif run.process.weights:
        with naming_keys(LOADING_KEYS):
            load_weights(module.detector, run.process.weights, options)
    if run.process.strategy == "fsdp" and run.processes * run.machines == 1:
        logger.info("SOLVER.STRATEGY fsdp has no effect with one process")
    parameters = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    logger.info(
        "Training %.2f M parameters on %d images until iteration %d, on %s, seed %d",
        parameters / 1e6, len(module.dataset or ()), trainer.max_steps, run.process.device, module.seed,
    )  # fmt: skip
    assert run.training is not None
    log_recipe(run.training, run.data.batch_size, len(module.dataset or ()))
    trainer.fit(module, ckpt_path=last, weights_only=True)
    if module.evaluators and module.evaluated_at != trainer.global_step:
        trainer.validate(module, verbose=False)


def _is_finished(checkpoint: dict[str, Any], path: Path, trainer: Any, *, evaluates: bool) -> bool:
    iterations = checkpoint["global_step"]
    if is_finished(path, iterations, trainer.max_steps, evaluates=evaluates):
        return True
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and callback.state_key in checkpoint["callbacks"]:
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
            if callback.should_stop:
                callback.log_stopped_before(iterations - 1)
                return True
    return False


def build_trainer(run: Run, module: DetectionModule, last: Path | None, class_names: tuple[str, ...]) -> L.Trainer:
    """Builds Lightning's trainer with the project's checkpoints, log messages and loggers instead of Lightning's."""
    device, _, index = run.process.device.partition(":")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    if run.process.amp:
        precision = "16-mixed" if device == "cuda" else "bf16-mixed"  # float16 as in Detectron2; CPUs have bfloat16
    strategy: DDPStrategy | str = "auto"
    if run.processes * run.machines > 1 and run.process.strategy == "fsdp":
        strategy = ShardedStrategy()
    elif run.processes * run.machines > 1:
        strategy = DDPStrategy(
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=bool(module.detector.unused_features()),
        )
    training: dict[str, Any] = {"logger": False}
    signals = Signals()
    callbacks: list[L.Callback] = [ResumeCheck(last), Progress()]
    if config := run.training:
        training = {
            "max_steps": config.schedule.max_iter,
            "val_check_interval": config.callbacks.eval_period or config.schedule.max_iter + 1,
            "benchmark": run.process.cudnn_benchmark,
            "logger": build_loggers(run.output_dir),
        }
        writer = DetectorWriter(run.output_dir, run.cfg_text, class_names, is_averaged=config.callbacks.ema is not None)
        callbacks += build_callbacks(config.callbacks, writer, run.process.device, signals.stop)
    # After a signal to another process, the handlers remain until the checkpoint has been saved.
    callbacks += [signals, RunStart(run)]
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=[int(index)] if index else run.processes,
        num_nodes=run.machines,
        strategy=strategy,
        precision=precision,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if run.data.test else 0.0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the project's samplers distribute the images
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        default_root_dir=run.output_dir,
        **training,
    )


def build_loggers(output_dir: Path) -> list[Logger]:
    """Builds the logger of ``metrics.json``, and TensorBoard's if it is installed."""
    loggers: list[Logger] = [JsonLogger(output_dir / "metrics.json")]
    try:
        loggers.append(EventLogger(output_dir, name="", version=""))
    except ModuleNotFoundError:
        logger.info("TensorBoard is not installed: scalars are written to metrics.json only")
    return loggers

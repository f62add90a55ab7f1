"""Detectron2's default trainer with the papers' recipe."""

import contextlib
import logging
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..config.checkpoint import load_options
from ..config.data import data_config
from ..config.evaluation import evaluation_config
from ..config.loading import check_micro_batches
from ..config.model import STEP_KEYS
from ..config.reading import naming_keys
from ..config.run import check_is_local, process_config
from ..config.training import RESUME_KEYS, callbacks_config, log_recipe, training_config
from ..errors import Interrupted, UserError
from ..evaluation import results_folder
from ..modeling import Targets
from ..training.augmentation import EmptyMasks
from ..training.callbacks import DetectorWriter
from ..training.ema import ExponentialMovingAverage
from ..training.failures import StepRecorder
from ..training.interruption import log_stop, shield_workers, stop_evaluation
from ..training.last_checkpoint import has_last_checkpoint, is_finished, write_finished
from ..training.optimizer import OPTIMIZERS, check_optimizer_state, hyperparameters, set_hyperparameters
from ..training.progress import RemainingTime
from ..training.schedule import SCHEDULES
from .accumulation import AccumulatingAMPTrainer, AccumulatingTrainer
from .checkpoint import EMA, DetectorCheckpointer
from .classes import known_class_names
from .data import resolve_num_classes, test_data, training_data
from .evaluation import build_evaluator
from .hooks import EarlyStopping, MetricPrinter, StopOnSignal, StopTraining, add_hooks
from .mapper import EMPTY_MASKS, DetrDatasetMapper
from .meta_arch import to_targets
from .patches import build_optimizer, without_key_checks
from .tta import SetPredictionTTA


class StoppableLoop(TrainerBase):
    """Training loop that ends on `StopTraining` and on signals.

    Must be a base class after ``DefaultTrainer``, which calls its ``train``.
    """

    def train(self, *iterations: int) -> None:
        """Runs Detectron2's loop until it ends or a hook raises `StopTraining`.

        After a signal to a step or an evaluation, saves a checkpoint and raises `Interrupted`. The loop does not log
        `UserError`, which the command line prints without a traceback.
        """
        logger = logging.getLogger("detectron2.engine.train_loop")
        logger.addFilter(_is_not_user_error)
        try:
            with contextlib.suppress(StopTraining):
                super().train(*iterations)
        except Interrupted:
            iteration = min(self.iter, self.max_iter - 1)  # the last completed one
            if self.checkpointer.saved_iteration != iteration:
                self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            log_stop(iteration + 1, self.max_iter)
            raise
        finally:
            for hook in self._hooks:
                if isinstance(hook, StopOnSignal):
                    hook.stop.__exit__()
            logger.removeFilter(_is_not_user_error)


def _is_not_user_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))


class Trainer(DefaultTrainer, StoppableLoop):
    """``DefaultTrainer`` with DETR's mapper, optimizer and checkpointer, and with the project's hooks.

    Unlike ``DefaultTrainer``, it also trains with several processes on CPUs.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's constructor would pass its own checkpointer to the hooks, and GPU ids to the distributed
        # model even on the CPU.
        TrainerBase.__init__(self)
        resolve_num_classes(cfg)  # raises if the config and the data sets disagree
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        check_micro_batches(cfg, comm.get_world_size())
        self.config = callbacks_config(cfg)
        model = self.build_model(cfg)
        with without_key_checks():
            optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self.ema = ExponentialMovingAverage(model, self.config.ema) if self.config.ema else None
        process = self._process = process_config(cfg)
        check_is_local(process)
        options: dict[str, Any] = {"device_ids": None} if process.device == "cpu" else {}
        options["find_unused_parameters"] = bool(model.detector.unused_features())
        model = create_ddp_model(model, broadcast_buffers=False, **options)
        if process.accumulation_steps > 1:
            accumulating = AccumulatingAMPTrainer if process.amp else AccumulatingTrainer
            self._trainer = accumulating(model, loader, optimizer, accumulation_steps=process.accumulation_steps)
        else:
            self._trainer = (AMPTrainer if process.amp else SimpleTrainer)(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        parts: dict[str, Any] = {EMA: self.ema} if self.ema else {}
        self.checkpointer = self.build_checkpointer(cfg, model, trainer=weakref.proxy(self), **parts)
        numbers = process.seed, comm.get_rank(), resolve_num_classes(cfg), process.accumulation_steps
        self.recorder = StepRecorder(process.output_dir, *numbers)
        self.empty_masks = EmptyMasks()
        self.start_iter = 0
        self.is_finished = False
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.remaining_time = RemainingTime(self.max_iter, self.config.eval_period or self.max_iter + 1)
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Resumes, or loads ``MODEL.WEIGHTS``; logs the checkpoint that a run resumes from."""
        super().resume_or_load(resume)
        self.is_finished = False
        if self.start_iter:
            path = Path(self.checkpointer.get_checkpoint_file())
            evaluates = bool(data_config(self.cfg, eval_only=True).test)
            self.is_finished = is_finished(path, self.start_iter, self.max_iter, evaluates=evaluates)
        for hook in self._hooks:
            if isinstance(hook, EarlyStopping) and hook.should_stop:
                hook.log_stopped_before(self.start_iter - 1)
                self.is_finished = True

    def train(self) -> Any:  # type: ignore[override]  # as in DefaultTrainer
        """Trains, unless the run that was resumed is finished."""
        if self.is_finished:
            return None
        results = super().train()
        folder = Path(self.checkpointer.save_dir)
        if comm.is_main_process() and has_last_checkpoint(folder):  # a subclass may have no checkpoints
            write_finished(folder)
        return results

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the state of a checkpoint; learning rates and other hyperparameters remain those of the config."""
        optimizer = self._trainer.optimizer
        with naming_keys(RESUME_KEYS):
            check_optimizer_state(optimizer, state_dict["_trainer"]["optimizer"])
        groups = hyperparameters(optimizer)
        super().load_state_dict(state_dict)
        set_hyperparameters(optimizer, self.scheduler, groups)

    def after_step(self) -> None:
        """Measures the time of the iteration, and runs the hooks."""
        self.remaining_time.end_iteration()
        super().after_step()

    def run_step(self) -> None:
        """Runs an iteration; errors contain the images of the batch and config keys."""
        # Removed after the step: the hook refers to the trainer, which would prevent copies of the model.
        handle = self.model.register_forward_pre_hook(self._record, with_kwargs=True)
        try:
            with self.recorder.reporting(), naming_keys(STEP_KEYS), _naming_rank():
                super().run_step()
        finally:
            handle.remove()
        self.recorder.stop()

    def _record(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch = next(iter((*args, *kwargs.values())), None)
        if model.training and batch is not None:
            if comm.is_main_process():
                self.empty_masks.add(sum(record.get(EMPTY_MASKS, 0) for record in batch), self.iter)
            whole = batch
            if isinstance(self._trainer, AccumulatingTrainer):  # losses are checked after all micro-batches
                whole = self._trainer.batch
                if batch[0] is not whole[0]:
                    return
            self.recorder.start(self.iter, torch.device(self._process.device), partial(_samples, whole))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        """Evaluates a model; errors of the model refer to config keys."""
        with naming_keys(STEP_KEYS):
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_checkpointer(
        cls, cfg: CfgNode, model: nn.Module, *, for_evaluation: bool = False, **checkpointables: Any
    ) -> DetectorCheckpointer:
        """Builds the checkpointer of ``OUTPUT_DIR`` for training, resuming and evaluation."""
        options = load_options(cfg, for_evaluation=for_evaluation, class_names=known_class_names(cfg))
        keep = 0 if for_evaluation else callbacks_config(cfg).checkpoint_keep
        return DetectorCheckpointer(model, process_config(cfg).output_dir, options, keep, **checkpointables)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Builds the papers' optimizer, which clips gradients at the start of each step."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Builds Detectron2's training loader with DETR's mapper."""
        config = data_config(cfg)
        data = training_data(config, process_config(cfg).seed)
        if cfg.SOLVER.LR_SCHEDULER_NAME in SCHEDULES and cfg.SOLVER.OPTIMIZER in OPTIMIZERS:  # subclasses add others
            log_recipe(training_config(cfg), config.batch_size, len(data["dataset"]) if data else None)
        loader = build_detection_train_loader(cfg, mapper=DetrDatasetMapper(cfg, True), **data)
        _shield_workers(loader)
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Builds Detectron2's test loader with DETR's mapper."""
        mapper, config = DetrDatasetMapper(cfg, False), data_config(cfg, eval_only=True)
        records = test_data(dataset_name, config)
        if records is None:
            loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        else:
            loader = build_detection_test_loader(records, mapper=mapper, num_workers=config.num_workers)
        _shield_workers(loader)
        return StoppableLoader(loader)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """Builds the evaluator of the data set's ``evaluator_type``."""
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluates with test-time augmentation; metrics have Detectron2's names, ``{"bbox_TTA": …}``."""
        names = data_config(cfg, eval_only=True).test
        folders = [results_folder(process_config(cfg).output_dir, names, name, tta=True) for name in names]
        evaluators = [cls.build_evaluator(cfg, *pair) for pair in zip(names, folders, strict=True)]
        results = cls.test(cfg, SetPredictionTTA(cfg, model), evaluators)
        return {f"{key}_TTA": value for key, value in results.items()}

    def build_hooks(self) -> list[Any]:
        """Adds the configured hooks to Detectron2's and, with ``TEST.AUG``, a final evaluation with TTA."""
        given = [hook for hook in super().build_hooks() if hook is not None]
        writer = DetectorWriter(
            Path(self._process.output_dir),
            self.cfg.dump(),
            known_class_names(self.cfg),
            is_averaged=self.ema is not None,
        )
        own = add_hooks(self.config, writer, given, self.ema, self.remaining_time)
        if evaluation_config(self.cfg).tta is not None:
            own.insert(-1, hooks.EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model)))  # before StopOnSignal
        return own

    def build_writers(self) -> list[Any]:
        """Builds Detectron2's writers; the printed remaining time follows the load and includes evaluations."""
        printer = MetricPrinter(self.max_iter, self.remaining_time)
        return [printer if type(writer) is CommonMetricPrinter else writer for writer in super().build_writers()]


class StoppableLoader:
    """Test loader that raises `Interrupted` on all ranks before the next batch after a signal."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            stop_evaluation()
            yield batch
        stop_evaluation(at_end=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def _shield_workers(loader: Any) -> None:
    """Applies `shield_workers` to the data loader of one of Detectron2's loaders."""
    while not isinstance(loader, DataLoader):
        if not hasattr(loader, "dataset"):  # not one of Detectron2's loaders
            return
        loader = loader.dataset
    shield_workers(loader)


@contextlib.contextmanager
def _naming_rank() -> Iterator[None]:
    """Adds a note to errors of distributed training: images of other ranks are not listed."""
    try:
        yield
    except FloatingPointError as error:
        size = comm.get_world_size()
        if size == 1:
            raise
        raise FloatingPointError(
            f"{error}\nDetectron2 checks the mean loss of all ranks. The images below are those of rank "
            f"{comm.get_rank()} of {size} only."
        ) from error


def _samples(batch: list[dict[str, Any]]) -> tuple[list[Tensor], list[Targets]]:
    return [record["image"] for record in batch], [to_targets(record["instances"], record) for record in batch]

"""The detector, its criterion and its data as a Lightning module."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from ..config.loading import leaves
from ..config.model import STEP_KEYS
from ..config.reading import naming_keys
from ..config.run import PROCESS_KEYS, Run
from ..config.training import RESUME_KEYS
from ..errors import UserError
from ..evaluation import Evaluator, TestTimeAugmentationConfig, results_folder
from ..evaluation.tta import detect_with_tta
from ..modeling import BatchSize, Detector, cardinality_error, check_targets, panoptic_postprocess, postprocess
from ..training import EmptyMasks, GradientClip, build_optimizer, build_scheduler
from ..training.failures import StepRecorder
from ..training.interruption import stop_evaluation
from ..training.last_checkpoint import check_state
from ..training.optimizer import check_optimizer_state, hyperparameters, set_hyperparameters
from . import data
from .batch import Batch
from .sharding import gather_parameters, release_parameters


class DetectionModule(L.LightningModule):
    """Trains and evaluates ``self.detector``, whose weights have the same names as in the Detectron2 engine.

    Args:
        run: configuration of the run.
        detector: trained and evaluated model.
        criterion: maps predictions and targets to weighted losses.
        dataset: training images, or None for evaluation only.
        evaluators: one for each of ``DATASETS.TEST``.
    """

    def __init__(
        self,
        run: Run,
        detector: Detector,
        criterion: nn.Module,
        dataset: data.DetectionDataset | None,
        evaluators: list[Evaluator],
    ) -> None:
        super().__init__()
        self.run = run
        self.dataset = dataset
        self.evaluators = evaluators
        self.detector = detector
        self.criterion = criterion
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        process = run.process
        for name, values in (("pixel_mean", process.pixel_mean), ("pixel_std", process.pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.seed = process.seed if process.seed >= 0 else int(torch.seed() % 2**31)
        self.last_losses: dict[str, float] = {}
        self.metrics: dict[str, Any] = {}
        self.scalars: dict[str, float] = {}  # metrics, flattened to the names in logs
        self.evaluated_at = -1  # number of iterations before the last evaluation
        self.tta: TestTimeAugmentationConfig | None = None  # if set, evaluations use it and add to ``metrics``
        self.clip: GradientClip | None = None
        self.grad_norm: Tensor | None = None  # before clipping; None if it is unknown or sharded
        self._losses: dict[str, Tensor] = {}
        self._micro_batches: list[Batch] = []  # those of the current batch that remain (SOLVER.ACCUMULATION_STEPS)
        self._batch_size = BatchSize(0, 0)
        self._hyperparameters: list[dict[str, Any]] = []
        self.recorder: StepRecorder | None = None
        self.empty_masks = EmptyMasks()

    def setup(self, stage: str) -> None:
        """Shares the seed of rank 0 with all ranks."""
        self.seed = self.trainer.strategy.broadcast(self.seed)
        numbers = self.seed, self.global_rank, self.run.detector.num_classes, self.run.process.accumulation_steps
        self.recorder = StepRecorder(self.run.output_dir, *numbers)

    def train_dataloader(self) -> DataLoader[Any]:
        """Builds the training loader, which starts at the iteration of the restored checkpoint."""
        assert self.dataset is not None
        ranks = {"rank": self.global_rank, "world_size": self.trainer.world_size}
        return data.training_loader(self.run.data, self.dataset, self.seed, start=self.trainer.global_step, **ranks)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Builds one loader for each of ``DATASETS.TEST``."""
        options: dict[str, Any] = {"rank": self.global_rank, "world_size": self.trainer.world_size}
        options["original_size"] = self.tta is not None
        # A micro-batch fits into memory.
        batch_size = max(1, self.run.data.batch_size // self.run.process.accumulation_steps)
        config, policy = replace(self.run.data, batch_size=batch_size), self.run.test_augmentation
        return [data.evaluation_loader(config, item.records, policy, **options) for item in self.evaluators]

    def configure_optimizers(self) -> Any:
        """Builds the optimizer and the learning-rate schedule, which steps every iteration."""
        assert self.run.training is not None
        optimizer = build_optimizer(self, self.run.training.optimizer)
        self.clip = self.run.training.optimizer.clip
        schedule = {"scheduler": build_scheduler(optimizer, self.run.training.schedule), "interval": "step"}
        self._hyperparameters = hyperparameters(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        """Applies the run's learning rates and other hyperparameters to the optimizer of a resumed run."""
        scheduler: Any = self.lr_schedulers()
        set_hyperparameters(self.trainer.optimizers[0], scheduler, self._hyperparameters)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clips gradients, which are no longer scaled for mixed precision at this point."""
        if self.clip is not None:
            norm = self.clip(value for group in optimizer.param_groups for value in group["params"])
            self.grad_norm = None if isinstance(norm, DTensor) else norm

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Splits the batch; seeds dropout with a function of seed, rank and iteration, to reproduce resumed runs."""
        state = np.random.SeedSequence([self.seed, self.global_rank, self.global_step]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]) >> 1)
        assert self.recorder is not None
        self.recorder.start(self.global_step, self.device, batch.samples)
        self.empty_masks.add(batch.empty_masks, self.global_step)
        with naming_keys(PROCESS_KEYS):
            self._micro_batches = batch.micro_batches(self.run.process.accumulation_steps)
        self._batch_size = BatchSize(len(batch.counts), sum(batch.counts))
        self.last_losses = {}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Accumulates the gradients of all micro-batches, which are synchronized with the last, before the step.

        Lightning's ``accumulate_grad_batches`` would count each micro-batch as an iteration of the training loop.
        """
        strategy: Any = self.trainer.strategy
        count = len(self._micro_batches)

        def accumulate() -> Any:
            result = None
            for index in range(count):
                is_blocked = index < count - 1 and isinstance(strategy, ParallelStrategy)
                with strategy.block_backward_sync() if is_blocked else nullcontext():
                    if index == 0:
                        result = optimizer_closure()
                    else:
                        strategy.backward(strategy.training_step(None, batch_idx), optimizer)
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, accumulate)

    def forward(self, batch: Batch) -> Any:
        """Returns the detector's predictions for a batch of uint8 images."""
        images = (batch.images.float() - self.pixel_mean) / self.pixel_std
        return self.detector(images.masked_fill(batch.padding_mask[:, None], 0.0), batch.padding_mask)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Checks the targets of a training batch while they are on the CPU."""
        if self.trainer.training:
            with naming_keys(STEP_KEYS):
                check_targets(batch.targets, self.run.detector.num_classes)
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the sum of all weighted losses of the next micro-batch."""
        micro_batch = self._micro_batches.pop(0)
        assert self.recorder is not None
        with self.recorder.reporting(), naming_keys(STEP_KEYS):
            predictions = self(micro_batch)
            # Other criteria may accept two arguments only.
            whole = (self._batch_size,) if self.run.process.accumulation_steps > 1 else ()
            losses = self.criterion(predictions, micro_batch.targets, *whole)
        total = torch.stack(list(losses.values())).sum()
        error = cardinality_error(predictions, micro_batch.targets) * (
            len(micro_batch.counts) / self._batch_size.images
        )
        # Copied to the host after the backward pass is launched, so that the host waits only once.
        self._losses = {"total_loss": total, **losses, "cardinality_error": error}
        return total

    def on_after_backward(self) -> None:
        """Copies the losses to the host; raises `FloatingPointError` before the step if one is not finite."""
        values = torch.stack([value.detach().float() for value in self._losses.values()]).tolist()
        found = dict(zip(self._losses, values, strict=True))
        self._losses = {}
        self.last_losses = {name: self.last_losses.get(name, 0.0) + value for name, value in found.items()}
        wrong = {name: value for name, value in found.items() if not np.isfinite(value)}
        assert self.recorder is not None
        with self.recorder.reporting():
            if wrong:
                raise FloatingPointError(
                    f"losses became infinite or NaN at iteration {self.global_step}: {wrong}. Lower SOLVER.BASE_LR, "
                    "increase SOLVER.WARMUP_ITERS, or set SOLVER.AMP.ENABLED False; --resume continues from the last "
                    "checkpoint."
                )
        if not self._micro_batches:
            self.recorder.stop()

    def on_validation_epoch_start(self) -> None:
        """Discards detections of an interrupted evaluation."""
        gather_parameters(self.detector)
        for evaluator in self.evaluators:
            evaluator.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluates a batch in full precision, like Detectron2, which uses mixed precision only in training."""
        stop_evaluation()
        config, sizes, segmentations = self.run.evaluation, batch.original_sizes, None
        options = config.max_detections, config.thing_classes or None, config.score_threshold
        with naming_keys(STEP_KEYS), torch.autocast(self.device.type, enabled=False):  # also for computing masks
            if self.tta is not None:
                detections = detect_with_tta(partial(self._predict, batch), batch.images, self.tta, *options)
            else:
                predictions = self(batch)
                detections = postprocess(predictions, sizes, *options)
                if config.is_panoptic:
                    limits = config.panoptic_score_threshold, config.panoptic_min_area
                    segmentations = panoptic_postprocess(predictions, sizes, config.thing_classes, *limits)
        self.evaluators[dataloader_idx].add(batch.image_ids, batch.file_names, detections, segmentations)

    def _predict(self, batch: Batch, images: Tensor) -> Any:
        """Returns the predictions for resized or flipped images (N, 3, h, w) of a batch without padding."""
        padding_mask = batch.padding_mask.new_zeros(len(images), *images.shape[-2:])
        return self(replace(batch, images=images, padding_mask=padding_mask))

    def on_validation_epoch_end(self) -> None:
        """Computes the metrics on rank 0, shares them with all ranks and logs them with Detectron2's names."""
        stop_evaluation(at_end=True)
        release_parameters(self.detector)
        names = [evaluator.spec.name for evaluator in self.evaluators]
        results: dict[str, Any] = {}
        for name, evaluator in zip(names, self.evaluators, strict=True):
            folder = results_folder(self.run.output_dir, names, name, tta=self.tta is not None)
            results[name] = evaluator.evaluate(Path(folder))
            evaluator.reset()
        results = self.trainer.strategy.broadcast(results)
        found = results if len(names) > 1 else results[names[0]]
        if self.tta is None:
            self.metrics, self.scalars, self.evaluated_at = found, dict(leaves(found, "/")), self.global_step
        else:
            found = {f"{name}_TTA": value for name, value in found.items()}
            self.metrics = self.metrics | found
        for logger in self.trainer.loggers:  # self.log_dict would log them one iteration earlier
            logger.log_metrics(dict(leaves(found, "/")), self.global_step)  # Detectron2's names, such as bbox/AP

    def __getstate__(self) -> dict[str, Any]:
        """Excludes the data sets from copies of the module, such as the averaged one."""
        return super().__getstate__() | {"dataset": None, "evaluators": []}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the seed, which a resumed run reuses if the config has none."""
        checkpoint["seed"] = self.seed

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises `UserError` if the training cannot continue from a checkpoint, or would lose its trained weights."""
        assert self.run.training is not None
        if "averaging_state" in checkpoint and not self.run.training.callbacks.ema:
            raise UserError(
                "the checkpoint to resume from has averaged weights in addition to the trained ones: set "
                "SOLVER.EMA.ENABLED True, or start a run from the averaged ones with MODEL.WEIGHTS and another "
                "OUTPUT_DIR"
            )
        optimizer = build_optimizer(self, self.run.training.optimizer)
        with naming_keys(RESUME_KEYS):
            check_state(self, checkpoint["state_dict"])
            check_optimizer_state(optimizer, *checkpoint["optimizer_states"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the seed if the config has none."""
        if self.run.process.seed < 0:
            self.seed = checkpoint["seed"]

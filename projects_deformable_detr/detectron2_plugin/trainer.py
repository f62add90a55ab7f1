"""Detectron2's default trainer with the papers' recipe."""

import os
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..checkpoint import LoadOptions
from ..modeling.backbones import unused_features
from . import monitors
from .checkpoint import DetectorCheckpointer
from .data import known_class_names, resolve_num_classes
from .ema import AVERAGE, Average
from .evaluation import build_evaluator
from .integration import build_optimizer, following_keys
from .mapper import DetrDatasetMapper
from .monitors import StoppableLoop
from .tta import SetPredictionTTA


class Trainer(DefaultTrainer, StoppableLoop):
    """``DefaultTrainer`` with DETR's mapper, optimizer and checkpointer; every hook of Detectron2 stays in place.

    Beyond Detectron2's, it also trains with several processes on CPUs.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's: it gives its own checkpointer to the hooks, and its distributed model GPU ids even
        # where the model is on the CPU.
        TrainerBase.__init__(self)
        monitors.check(cfg)
        resolve_num_classes(cfg)  # raises where the config and the data sets disagree
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        with following_keys():
            optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self.average = Average(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        model = create_ddp_model(model, broadcast_buffers=False, **_distributed_options(cfg, model))
        loop = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = loop(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        parts: dict[str, Any] = {AVERAGE: self.average} if self.average else {}
        self.checkpointer = self.build_checkpointer(cfg, model, trainer=weakref.proxy(self), **parts)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_checkpointer(
        cls, cfg: CfgNode, model: nn.Module, *, for_evaluation: bool = False, **checkpointables: Any
    ) -> DetectorCheckpointer:
        """The checkpointer of ``OUTPUT_DIR``, which training, resuming and evaluating share."""
        options = LoadOptions.of(cfg, for_evaluation=for_evaluation, class_names=known_class_names(cfg))
        return DetectorCheckpointer(model, cfg.OUTPUT_DIR, options, **checkpointables)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The papers' optimizer, which clips gradients at the start of each step."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Detectron2's training loader with DETR's mapper."""
        return build_detection_train_loader(cfg, mapper=DetrDatasetMapper(cfg, True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Detectron2's test loader with DETR's mapper."""
        return build_detection_test_loader(cfg, dataset_name, mapper=DetrDatasetMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """The evaluator that the data set's metadata asks for."""
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Metrics with test-time augmentation, under Detectron2's names: ``{"bbox_TTA": …}``."""
        several = len(cfg.DATASETS.TEST) > 1
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(folder, *[name] * several)) for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, SetPredictionTTA(cfg, model), evaluators)
        return {f"{key}_TTA": value for key, value in results.items()}

    def build_hooks(self) -> list[Any]:
        """Detectron2's and the keys' own, and with TEST.AUG the evaluation of test-time augmentation at the end."""
        own = [hooks.EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model))] if self.cfg.TEST.AUG.ENABLED else []
        given = [hook for hook in super().build_hooks() if hook is not None]
        return [*monitors.arrange(self.cfg, given, self.average), *own]


def _distributed_options(cfg: CfgNode, model: Any) -> dict[str, Any]:
    """What Detectron2's defaults leave out: processes on CPUs, and backbones with more features than are used."""
    unused = unused_features(cfg, model.detector.backbone)
    devices = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
    return {"find_unused_parameters": bool(unused), **devices}

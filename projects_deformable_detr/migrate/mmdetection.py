"""mmdetection 3's configs in ``configs/detr`` and ``configs/deformable_detr``; options go by their dotted names."""

from typing import Any

from . import mmdetection_model, mmdetection_training
from .key_value import parse
from .mmdetection_files import read
from .rows import Flag, Preset, Source


def _resnet(depth: int) -> dict[str, Any]:
    at = "model.backbone"
    return {f"{at}.depth": depth, f"{at}.init_cfg.checkpoint": f"torchvision://resnet{depth}"}


_500 = {"train_cfg.max_epochs": 500, "train_cfg.val_interval": 10, "param_scheduler.0.milestones": [334]}
_REFINE = {"model.with_box_refine": True}

MMDETECTION = Source(
    "mmdetection",
    mmdetection_model.ROWS + mmdetection_training.ROWS,
    {
        "detr_r50_8xb2-150e_coco": Preset("detr", gpus=8),
        "detr_r50_8xb2-500e_coco": Preset("detr", _500, 8),
        "detr_r101_8xb2-500e_coco": Preset("detr", _500 | _resnet(101), 8),
        "detr_r18_8xb2-500e_coco": Preset("detr", _500 | _resnet(18), 8),
        "deformable-detr_r50_16xb2-50e_coco": Preset("deformable_detr", gpus=16),
        "deformable-detr-refine_r50_16xb2-50e_coco": Preset("deformable_detr", _REFINE, 16),
        "deformable-detr-refine-twostage_r50_16xb2-50e_coco": Preset(
            "deformable_detr", _REFINE | {"model.as_two_stage": True}, 16
        ),
    },
    parse,
    read,
    by_type=frozenset({"custom_hooks"}),
    flags={
        "--amp": Flag("optim_wrapper.type", "AmpOptimWrapper"),
        "--auto-scale-lr": Flag("auto_scale_lr.enable", True),
        "--resume": Flag("resume", True, may_take="load_from"),
        "--work-dir": Flag("work_dir", takes=True),
        "--launcher": Flag(takes=True),
        "--local_rank": Flag(takes=True),
        "--local-rank": Flag(takes=True),
    },
)

"""Masks on the frozen detector of deformable_detr_r50_50ep."""

from .common.recipe import drop_at
from .deformable_detr_r50_50ep import dataloader, model, optimizer, train
from .models.masks import with_masks

with_masks(
    model,
    dataloader,
    level=2,
    fine=[("res4", 1024), ("res3", 512), ("res2", 256)],
    box_positions=True,
    freeze_detector=True,
)
train.init_checkpoint = "./output/deformable_detr_r50_50ep/model_final.pth"
train.max_iter = 92412
lr_multiplier = drop_at(55447, train.max_iter)
train.output_dir = "./output/deformable_detr_r50_instance"

"""Masks on the frozen detector of detr_r50_500ep."""

from .common.recipe import drop_at
from .detr_r50_500ep import dataloader, model, optimizer, train
from .models.masks import with_masks

with_masks(
    model,
    dataloader,
    level=0,
    fine=[("res4", 1024), ("res3", 512), ("res2", 256)],
    box_positions=False,
    freeze_detector=True,
)
train.init_checkpoint = "./output/detr_r50_500ep/model_final.pth"
train.max_iter = 46206
lr_multiplier = drop_at(27724, train.max_iter)
train.output_dir = "./output/detr_r50_instance"

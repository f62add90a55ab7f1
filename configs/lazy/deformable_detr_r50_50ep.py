"""Deformable DETR, multi-scale; the recipe is in common/."""

from .common.coco import dataloader
from .common.recipe import lr_multiplier, optimizer, train
from .models.deformable_detr import model

train.output_dir = "./output/deformable_detr_r50_50ep"

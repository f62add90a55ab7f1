"""Single-scale."""

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train
from .models.deformable_detr import single_scale

single_scale(model)
train.output_dir = "./output/deformable_detr_r50_single_scale_50ep"

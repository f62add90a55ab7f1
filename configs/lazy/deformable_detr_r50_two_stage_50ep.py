"""++ two-stage."""

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train
from .models.deformable_detr import two_stage

two_stage(model)
train.output_dir = "./output/deformable_detr_r50_two_stage_50ep"

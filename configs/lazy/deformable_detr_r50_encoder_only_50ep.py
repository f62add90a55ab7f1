"""Encoder-only."""

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train
from .models.deformable_detr import encoder_only

encoder_only(model)
train.output_dir = "./output/deformable_detr_r50_encoder_only_50ep"

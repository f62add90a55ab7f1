"""DETR-DC5."""

from .detr_r50_500ep import dataloader, lr_multiplier, model, optimizer, train

model.detector.backbone.dilate_res5 = True
train.output_dir = "./output/detr_r50_dc5_500ep"

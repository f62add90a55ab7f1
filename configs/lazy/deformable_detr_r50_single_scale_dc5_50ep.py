"""Single-scale, DC5."""

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train
from .models.deformable_detr import single_scale

single_scale(model)
model.detector.backbone.dilate_res5 = True
train.output_dir = "./output/deformable_detr_r50_single_scale_dc5_50ep"

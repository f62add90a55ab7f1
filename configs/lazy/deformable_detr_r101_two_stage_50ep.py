"""Two-stage on ResNet-101."""

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train
from .models.deformable_detr import two_stage

two_stage(model)
model.detector.backbone.depth = 101
train.init_checkpoint = "torchvision://resnet101"
train.output_dir = "./output/deformable_detr_r101_two_stage_50ep"

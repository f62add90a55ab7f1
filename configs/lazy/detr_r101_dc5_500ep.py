"""DETR-DC5 on ResNet-101."""

from .detr_r50_500ep import dataloader, lr_multiplier, model, optimizer, train

model.detector.backbone.depth, model.detector.backbone.dilate_res5 = 101, True
train.init_checkpoint = "torchvision://resnet101"
train.output_dir = "./output/detr_r101_dc5_500ep"

"""Deformable convolution (arXiv 1703.06211) in res3 to res5."""

from ..deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.detector.backbone.deform = [False, True, True, True]
train.output_dir = "./output/ablations/backbone_dcn"

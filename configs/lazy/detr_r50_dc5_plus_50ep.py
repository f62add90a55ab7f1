"""DETR-DC5+, the baseline of arXiv 2010.04159."""

from .common.recipe import drop_at
from .detr_r50_500ep import dataloader, model, optimizer, train
from .models.detr import focal

focal(model)
model.detector.backbone.dilate_res5 = True
model.detector.queries.num_queries = 300
train.max_iter = 92412
lr_multiplier = drop_at(73929, train.max_iter)
train.output_dir = "./output/detr_r50_dc5_plus_50ep"

"""DETR with the schedule of the paper's ablations."""

from .common.recipe import drop_at
from .detr_r50_500ep import dataloader, model, optimizer, train

train.max_iter = 554470
lr_multiplier = drop_at(369647, train.max_iter)
train.output_dir = "./output/detr_r50_300ep"

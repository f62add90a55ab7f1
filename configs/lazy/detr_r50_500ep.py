"""DETR with the recipe of arXiv 2005.12872: batch 64, 500 epochs, learning rate x0.1 after 400."""

from .common.coco import dataloader
from .common.recipe import drop_at, optimizer, train
from .models.detr import model

dataloader.train.total_batch_size = 64
optimizer.lr, optimizer.params.backbone_lr, optimizer.params.sampling_lr = 1e-4, 1e-5, 1e-4
train.max_iter, train.eval_period, train.checkpointer.period = 924117, 18482, 1849
lr_multiplier = drop_at(739294, train.max_iter)
train.output_dir = "./output/detr_r50_500ep"

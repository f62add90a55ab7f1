"""A small two-stage model for a data set of one's own, from scratch: set its names and number of classes."""

from .common.coco import dataloader, resize_only
from .common.recipe import cosine, optimizer, train
from .models.deformable_detr import model, small

small(model, decoder_layers=4, num_queries=60, stem=64, res2=64)

dataloader.train.total_batch_size, dataloader.train.num_workers = 4, 1
resize_only(dataloader, min_sizes=(216, 240, 264), max_size=400, test_size=240)

optimizer.lr, optimizer.params.backbone_lr, optimizer.params.sampling_lr = 5e-4, 5e-4, 1.5e-4
train.init_checkpoint = ""
train.max_iter, train.eval_period, train.checkpointer.period = 3000, 0, 1000
lr_multiplier = cosine(train.max_iter, warmup_iters=200, warmup_factor=0.005)
train.output_dir = "./output/small_r18_scratch"

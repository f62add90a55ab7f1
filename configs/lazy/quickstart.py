"""A small two-stage model from scratch on the shapes data."""

from .common.coco import dataloader, resize_only
from .common.recipe import cosine, optimizer, train
from .models.deformable_detr import model, small

small(model, decoder_layers=5, num_queries=40, stem=32, res2=32)
model.detector.decoder.num_classes = 6
model.load_options.class_names.dataset = "shapes_train"

dataloader.train.dataset.names, dataloader.test.dataset.names = "shapes_train", "shapes_val"
dataloader.train.total_batch_size, dataloader.train.num_workers = 8, 1
resize_only(dataloader, min_sizes=(128,), max_size=160, test_size=128)

optimizer.lr, optimizer.params.backbone_lr, optimizer.params.sampling_lr = 1e-3, 1e-3, 3e-4
train.init_checkpoint = ""
train.max_iter, train.eval_period, train.checkpointer.period = 2500, 0, 1000
lr_multiplier = cosine(train.max_iter, warmup_iters=200, warmup_factor=0.005)
train.output_dir = "./output/quickstart"

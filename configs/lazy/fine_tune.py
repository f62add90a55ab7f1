"""Fine-tunes the two-stage model on a data set of 6 classes.

To use another data set in COCO's format, register it here with Detectron2's ``register_coco_instances`` and change the
names and the number of classes.
"""

from .deformable_detr_r50_two_stage_50ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.names = "shapes_train"
dataloader.test.dataset.names = "shapes_val"
dataloader.train.total_batch_size = 4
model.detector.decoder.num_classes = 6

train.init_checkpoint = "./output/deformable_detr_r50_two_stage_50ep/model_final.pth"
train.output_dir = "./output/fine_tune"
train.max_iter = 5000  # the learning rate drops at the same fraction of the training as in the recipe
train.eval_period = 1000
# Batch 32 -> 4: all learning rates divided by 8.
optimizer.lr = 2.5e-5
optimizer.params.backbone_lr = optimizer.params.sampling_lr = 2.5e-6

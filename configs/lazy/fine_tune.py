"""Fine-tunes the two-stage model on a data set of 6 classes.

To use another data set in COCO's format, register it here with Detectron2's ``register_coco_instances`` and change the
names and the number of classes.
"""

from .deformable_detr_r50_two_stage_50ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.config.train = ["shapes_train"]
dataloader.config.test = ["shapes_val"]
dataloader.config.batch_size = 4
model.detector.config.num_classes = 6

train.init_checkpoint = "./output/deformable_detr_r50_two_stage_50ep/model_final.pth"
train.output_dir = "./output/fine_tune"
train.max_iter = 5000  # the learning rate drops at the same fraction of the training as in the recipe
train.eval_period = 1000
optimizer.config.base_lr = 2.5e-5  # batch 32 -> 4: all learning rates divided by 8

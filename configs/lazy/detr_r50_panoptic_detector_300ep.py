"""The first stage of detr_r50_panoptic: boxes of things and stuff."""

from .detr_r50_300ep import dataloader, lr_multiplier, model, optimizer, train
from .models.masks import panoptic_data

names = dict(train="coco_2017_train_panoptic", test="coco_2017_val_panoptic")
panoptic_data(model, dataloader, **names, num_things=80, num_classes=133)
del names
train.output_dir = "./output/detr_r50_panoptic_detector_300ep"

"""Panoptic segmentation, detector and mask head together."""

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train
from .models.masks import panoptic, panoptic_data, with_masks

names = dict(train="coco_2017_train_panoptic", test="coco_2017_val_panoptic")
panoptic_data(model, dataloader, **names, num_things=80, num_classes=133)
with_masks(
    model,
    dataloader,
    level=2,
    fine=[("res4", 1024), ("res3", 512), ("res2", 256)],
    box_positions=True,
    freeze_detector=False,
)
panoptic(model, dataloader, score_threshold=0.4)
del names
train.output_dir = "./output/deformable_detr_r50_panoptic"

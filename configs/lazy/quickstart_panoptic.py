"""The demo's model for panoptic segmentation of the shapes."""

from projects_deformable_detr.shapes.dataset import CATEGORIES

from .models.masks import panoptic, panoptic_data
from .quickstart_instance import dataloader, lr_multiplier, model, optimizer, train

names = dict(train="shapes_train_panoptic", test="shapes_val_panoptic")
panoptic_data(model, dataloader, **names, num_things=6, num_classes=len(CATEGORIES))
panoptic(model, dataloader, score_threshold=0.4)
del names
train.output_dir = "./output/quickstart_panoptic"

"""The demo's model with masks."""

from .models.masks import with_masks
from .quickstart import dataloader, lr_multiplier, model, optimizer, train

with_masks(
    model,
    dataloader,
    level=0,
    fine=[("res3", 64), ("res3", 64), ("res2", 32)],
    box_positions=True,
    freeze_detector=False,
    mask_weight=5.0,
    dice_weight=2.0,
)
train.output_dir = "./output/quickstart_instance"

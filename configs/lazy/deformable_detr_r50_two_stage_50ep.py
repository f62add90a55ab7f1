"""The recipe of deformable_detr_r50_two_stage_50ep.yaml as a LazyConfig."""

from projects_deformable_detr import model_zoo

model, dataloader, optimizer, lr_multiplier, train = model_zoo.get_config(
    "deformable_detr_r50_two_stage_50ep", lazy=True
).values()

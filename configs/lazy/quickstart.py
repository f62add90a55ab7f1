"""The recipe of quickstart.yaml as a LazyConfig."""

from projects_deformable_detr import model_zoo

model, dataloader, optimizer, lr_multiplier, train = model_zoo.get_config("quickstart", lazy=True).values()

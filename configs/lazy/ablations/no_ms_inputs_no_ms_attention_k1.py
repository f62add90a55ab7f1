"""A row of arXiv 2010.04159, table 2: see the YAML file of this name."""

from ..deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train
from ..models.deformable_detr import single_scale

single_scale(model)
model.detector.encoder.points = 1
train.output_dir = "./output/ablations/no_ms_inputs_no_ms_attention_k1"

"""A row of arXiv 2010.04159, table 2: see the YAML file of this name."""

from ..deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "./output/ablations/ms_inputs_ms_attention_k4"

"""A row of arXiv 2010.04159, table 2: see the YAML file of this name."""

from detectron2.config import LazyCall as L

from projects_deformable_detr.modeling.fpn import PyramidBackbone

from ..deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.detector.backbone = L(PyramidBackbone)(
    bottom_up=model.detector.backbone, in_features=["res3", "res4", "res5"], channels=256
)
model.detector.tokenizer.in_channels = {"p3": 256, "p4": 256, "p5": 256, "p6": 256}
train.output_dir = "./output/ablations/ms_inputs_ms_attention_k4_fpn"

"""Multi-scale on Swin-T."""

from detectron2.config import LazyCall as L

from projects_deformable_detr.modeling.swin import SwinBackbone

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.detector.backbone = L(SwinBackbone)(
    variant="swin_t", out_features=["res3", "res4", "res5"], drop_path=0.2, freeze_at=0
)
model.detector.tokenizer.in_channels = {"res3": 192, "res4": 384, "res5": 768}
train.init_checkpoint = "torchvision://swin_t"
train.output_dir = "./output/deformable_detr_swin_t_50ep"

"""The recipe of arXiv 2010.04159: AdamW, gradients clipped over the whole model, batch 32, 50 epochs of COCO 2017."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from projects_deformable_detr.training.optimizer import GradientClip, make_optimizer, parameter_groups

train = dict(
    output_dir="./output/deformable_detr",
    init_checkpoint="torchvision://resnet50",
    max_iter=184823,  # 118,287 images / 32 = 3,696.5 iterations an epoch
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=3697, max_to_keep=100),
    eval_period=18482,
    log_period=20,
    device="cuda",
)

# `model` of the groups is set by the training script.
optimizer = L(make_optimizer)(
    params=L(parameter_groups)(base_lr="${..lr}", backbone_lr=2e-5, sampling_lr=2e-5),
    name="ADAMW",
    lr=2e-4,
    weight_decay=1e-4,
    clip=L(GradientClip)(kind="full_model", value=0.1, norm_type=2.0),
)


def drop_at(milestone, max_iter):
    """The learning rate x0.1 after ``milestone`` iterations, no warm-up."""
    steps = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[milestone], num_updates=max_iter)
    return L(WarmupParamScheduler)(scheduler=steps, warmup_factor=1.0, warmup_length=10 / max_iter)


def cosine(max_iter, warmup_iters, warmup_factor):
    """A linear warm-up, then a cosine to 0."""
    scheduler = L(CosineParamScheduler)(start_value=1, end_value=0.0)
    return L(WarmupParamScheduler)(
        scheduler=scheduler, warmup_factor=warmup_factor, warmup_length=warmup_iters / max_iter
    )


lr_multiplier = drop_at(147859, train["max_iter"])

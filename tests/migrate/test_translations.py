"""Their published command lines and configs make the models, losses and optimizers of the configs here."""

import pytest
import torch

from projects_deformable_detr import build_criterion, build_detector, model_zoo
from projects_deformable_detr.engine import is_installed
from projects_deformable_detr.training.optimizer import build_optimizer

ENGINES = [
    "standalone",
    pytest.param("detectron2", marks=pytest.mark.skipif(not is_installed("detectron2"), reason="no detectron2")),
]
SCRIPTS = {
    "r50_deformable_detr_single_scale": "--num_feature_levels 1",
    "r50_deformable_detr_single_scale_dc5": "--num_feature_levels 1 --dilation",
    "r50_deformable_detr": "",
    "r50_deformable_detr_plus_iterative_bbox_refinement": "--with_box_refine",
    "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage": "--with_box_refine --two_stage",
}
OURS = {
    "r50_deformable_detr_single_scale": "deformable_detr_r50_single_scale_50ep",
    "r50_deformable_detr_single_scale_dc5": "deformable_detr_r50_single_scale_dc5_50ep",
    "r50_deformable_detr": "deformable_detr_r50_50ep",
    "r50_deformable_detr_plus_iterative_bbox_refinement": "deformable_detr_r50_box_refine_50ep",
    "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage": "deformable_detr_r50_two_stage_50ep",
}
# DETR's README, with the schedule and batch of the published models; 16 GPUs of 4 images.
FULL = "--batch_size 4 --epochs 500 --lr_drop 400 --coco_path coco"
PANOPTIC = "--coco_path coco --coco_panoptic_path panoptic --dataset_file coco_panoptic --batch_size 4"
DETR = {
    "detr_r50_500ep": FULL,
    "detr_r50_dc5_500ep": f"{FULL} --dilation",
    "detr_r101_500ep": f"{FULL} --backbone resnet101",
    "detr_r101_dc5_500ep": f"{FULL} --backbone resnet101 --dilation",
    "detr_r50_300ep": "--batch_size 4 --coco_path coco",
    "detr_r50_panoptic_detector_300ep": PANOPTIC,
    "detr_r50_panoptic": f"{PANOPTIC} --masks --epochs 25 --lr_drop 15 --frozen_weights box/checkpoint.pth",
    "detr_r50_instance": "--masks --epochs 25 --lr_drop 15 --batch_size 4 --frozen_weights box/checkpoint.pth",
}


def describe(cfg):
    """What training sees: tensors, losses, groups with their rates, and the keys of the recipe."""
    cfg = cfg.clone()
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES or 80
    cfg.SOLVER.AMP.ENABLED = True  # the fused optimizer does not take tensors without values
    with torch.device("meta"):
        detector = build_detector(cfg)
    criterion, optimizer = build_criterion(cfg), build_optimizer(cfg, detector)
    names = {parameter: name for name, parameter in detector.named_parameters()}
    return {
        "tensors": {key: tuple(value.shape) for key, value in detector.state_dict().items()},
        "trained": sorted(name for name, value in detector.named_parameters() if value.requires_grad),
        "weights": criterion.weights,
        "costs": {key: value for key, value in vars(criterion.matcher).items() if key.endswith("_weight")},
        "classification": vars(criterion.matcher.classification),
        "layers": criterion.deep_supervision,
        "groups": [
            (group["name"], group["lr"], group["weight_decay"], [names[item] for item in group["params"]])
            for group in optimizer.param_groups
        ],
        "recipe": (cfg.SOLVER.dump(), cfg.INPUT.dump(), cfg.DATASETS.dump(), cfg.DATALOADER.dump()),
    }


def expected(name, engine):
    return model_zoo.get_config(name, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_official_deformable_detr(migrate, script, engine):
    cfg, _ = migrate("official", "--", "--output_dir", f"exps/{script}", *SCRIPTS[script].split(), engine=engine)
    assert f"exps/{script}" == cfg.OUTPUT_DIR
    assert describe(cfg) == describe(expected(OURS[script], engine))
    by_name, _ = migrate("official", "--", f"./configs/{script}.sh", engine=engine)
    assert by_name == expected(OURS[script], engine)


@pytest.mark.parametrize("name", DETR)
def test_official_detr(migrate, name):
    cfg, _ = migrate("official", "--config", "detr", "--gpus", 16, "--", "main.py", *DETR[name].split())
    assert describe(cfg) == describe(expected(name, "standalone"))
    frozen = "frozen" in DETR[name]
    assert (cfg.MODEL.WEIGHTS == "box/checkpoint.pth") == frozen == cfg.MODEL.DETR.MASKS.FREEZE_DETECTOR
    assert cfg.MODEL.DETR.PANOPTIC == expected(name, "standalone").MODEL.DETR.PANOPTIC


def test_a_difference_would_be_seen(migrate):
    cfg, _ = migrate("official", "--", "--with_box_refine", "--lr_linear_proj_mult", "0.5", "--cls_loss_coef", "1")
    found, wanted = describe(cfg), describe(expected("deformable_detr_r50_50ep", "standalone"))
    assert {key for key in found if found[key] != wanted[key]} == {"tensors", "trained", "weights", "groups", "recipe"}


@pytest.mark.parametrize(
    ("source", "config", "name", "differing"),
    [
        ("mmdetection", "detr_r101_8xb2-500e_coco", "detr_r101_500ep", {"recipe"}),
        ("mmdetection", "deformable-detr_r50_16xb2-50e_coco", "deformable_detr_r50_50ep", set()),
        ("mmdetection", "deformable-detr-refine_r50_16xb2-50e_coco", "deformable_detr_r50_box_refine_50ep", set()),
        (
            "mmdetection",
            "deformable-detr-refine-twostage_r50_16xb2-50e_coco",
            "deformable_detr_r50_two_stage_50ep",
            set(),
        ),
        # Their recipes: res2 trained, another class weight, no slow group.
        ("detrex", "detr_r50_dc5_300ep", "detr_r50_dc5_500ep", {"recipe"}),
        ("detrex", "detr_r101_300ep", "detr_r101_500ep", {"trained", "groups", "recipe"}),
        (
            "detrex",
            "deformable_detr_r50_two_stage_50ep",
            "deformable_detr_r50_two_stage_50ep",
            {"trained", "weights", "groups", "recipe"},
        ),
        ("transformers", "detr", "detr_r50_500ep", {"layers"}),
        ("transformers", "deformable_detr", "deformable_detr_r50_50ep", {"weights", "costs", "layers"}),
    ],
)
def test_other_published_configs(migrate, source, config, name, differing):
    cfg, _ = migrate(source, "--config", config)
    found, wanted = describe(cfg), describe(expected(name, "standalone"))
    assert {key for key in found if found[key] != wanted[key]} == differing


def test_rates_of_a_frozen_backbone(migrate):
    cfg, _ = migrate("official", "--", "--lr_backbone", "0")
    assert {group[0] for group in describe(cfg)["groups"]} == {"rest", "sampling"}


def test_a_batch_of_other_gpus_and_images(migrate):
    cfg, said = migrate("official", "--gpus", 4, "--images", 1000, "--", "--epochs", "10", "--lr_drop", "4")
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS)) == (8, 1250, (500, 1000))
    assert "8 images in a batch over 4 GPUs (--gpus), 1000 images in an epoch (--images)" in said


def test_detrexs_schedule_is_relative(migrate):
    words = ("train.max_iter=1000", "lr_multiplier.warmup_length=0.01", "lr_multiplier.scheduler.values=[1,0.5]")
    cfg, _ = migrate("detrex", "--config", "deformable_detr_r50_50ep", "--", *words)
    assert (cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS), cfg.SOLVER.GAMMA) == (1000, (800,), 0.5)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR) == (10, 0.001)

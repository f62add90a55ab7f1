"""Files that hold their options: official checkpoints, Hugging Face's config.json, mmdetection's whole configs."""

import argparse
import json

import pytest
import torch

from projects_deformable_detr.checkpoint import hf_config
from projects_deformable_detr.migrate.mmdetection_files import parse_config
from projects_deformable_detr.modeling import build_detector

DETR_ARGS = {
    "lr": 1e-4, "lr_backbone": 1e-5, "batch_size": 4, "weight_decay": 1e-4, "epochs": 500, "lr_drop": 400,
    "clip_max_norm": 0.1, "frozen_weights": None, "backbone": "resnet50", "dilation": True, "pre_norm": False,
    "num_queries": 100, "masks": False, "aux_loss": True, "eos_coef": 0.1, "dataset_file": "coco", "coco_path": "/data",
    "output_dir": "", "resume": "", "eval": False, "rank": 0, "gpu": 0, "distributed": True, "dist_backend": "nccl",
    "world_size": 16, "dist_url": "tcp://host:1",
}  # fmt: skip


def write(path, **args):
    torch.save({"model": {"weight": torch.zeros(1)}, "args": argparse.Namespace(**args)}, path)
    return path


def test_an_official_checkpoint(run, tmp_path):
    """The published kind: nothing of it differs from our config."""
    status, out, said = run("official", "--from-checkpoint", write(tmp_path / "detr.pth", **DETR_ARGS))
    assert (status, out.split()) == (0, ["--config-file", out.split()[1]])
    assert out.strip().endswith("configs/detr_r50_dc5_500ep.yaml")
    assert "64 images in a batch over 16 GPUs" in said
    assert said.count("WARNING") == 1 and "--coco_path has no counterpart" in said


def test_the_command_line_goes_before_the_checkpoint(run, tmp_path):
    path = write(tmp_path / "x.pth", num_feature_levels=4, with_box_refine=True, num_queries=77, lr=1e-3)
    status, out, _ = run("official", "--from-checkpoint", path, "--", "--num_queries", "88")
    assert status == 0 and "deformable_detr_r50_box_refine_50ep.yaml" in out
    assert "MODEL.DETR.NUM_OBJECT_QUERIES 88" in out and "SOLVER.BASE_LR 0.001" in out


class Evil:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"num_feature_levels": 4, "dn_number": 100}, "--dn_number is no option of official"),
        ({"lr": Evil()}, "without running code"),
        (None, "no checkpoint with the official code's command line"),
    ],
)
def test_official_checkpoints_that_are_refused(run, tmp_path, args, said):
    path = tmp_path / "x.pth"
    if args is None:
        torch.save({"model": {}}, path)
    else:
        write(path, **args)
    status, out, err = run("official", "--from-checkpoint", path)
    assert (status, out) == (2, "") and said in err


def test_an_option_may_be_ignored(run, tmp_path):
    path = write(tmp_path / "x.pth", num_feature_levels=4, dn_number=100)
    assert run("official", "--from-checkpoint", path, "--ignore", "dn_number")[0] == 0


@pytest.mark.parametrize("variant", ["multi_scale", "box_refine", "two_stage", "single_scale", "detr", "detr_masks"])
def test_what_export_hf_writes_comes_back(make_cfg, migrate, tmp_path, variant):
    """The whole way: our config, their config.json, our config, and the same model of it."""
    masks = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8} if variant == "detr_masks" else {}
    cfg = make_cfg(variant.removesuffix("_masks"), DIM_FEEDFORWARD=40, COST_CLASS=3.0, **masks)
    detector = build_detector(cfg)
    (tmp_path / "config.json").write_text(json.dumps(hf_config.make(cfg, detector, None)))
    processor = hf_config.make_processor(cfg, variant != "detr")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"resample": 2}))
    found, said = migrate("transformers", "--from-checkpoint", tmp_path)
    assert "WARNING" not in said
    found.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES
    ours, theirs = (
        {key: value.shape for key, value in build_detector(item).state_dict().items()} for item in (cfg, found)
    )
    assert ours == theirs
    for key in ("COST_CLASS", "DIM_FEEDFORWARD", "DROPOUT", "NHEADS", "TWO_STAGE", "WITH_BOX_REFINE"):
        assert found.MODEL.DETR[key] == cfg.MODEL.DETR[key], key
    assert list(found.MODEL.PIXEL_MEAN) == pytest.approx(list(cfg.MODEL.PIXEL_MEAN))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"encoder_ffn_dim": 10, "decoder_ffn_dim": 20},
            "encoder_ffn_dim and decoder_ffn_dim disagree: both are MODEL",
        ),
        ({"backbone_config": {"model_type": "swin"}}, "not among the ResNets here"),
        ({"encoder_layerdrop": 0.5}, "encoder_layerdrop 0.5: here it is always 0.0"),
        ({"class_cost": 2, "num_query": 4}, "num_query is no option of transformers: did you mean num_queries"),
        ({"model_type": "dab-detr"}, "model_type 'dab-detr' is none of detr, deformable_detr"),
    ],
)
def test_transformers_configs_that_are_refused(run, tmp_path, changes, said):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deformable_detr"} | changes))
    status, out, err = run("transformers", "--from-checkpoint", tmp_path / "config.json")
    assert (status, out) == (2, "") and said in err


MMDETECTION = """
model = dict(
    type='DeformableDETR', num_queries=50, as_two_stage=True, with_box_refine=True,
    backbone=dict(type='ResNet', depth=101, out_indices=(1, 2, 3), init_cfg=dict(
        type='Pretrained', checkpoint='torchvision://resnet101')),
    train_cfg=dict(assigner=dict(type='HungarianAssigner', match_costs=[
        dict(type='FocalLossCost', weight=2.0), dict(box_format='xywh', type='BBoxL1Cost', weight=7.0)])),
    neck=dict(type='ChannelMapper', in_channels=[512, 1024, 2048], norm_cfg=dict(type='GN', num_groups=32)))
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=0.0004))
param_scheduler = [dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[11], gamma=0.1)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
train_pipeline = [{'type': 'LoadImageFromFile'}, dict(type='RandomFlip', prob=0.5)]
work_dir = './work_dirs/x'
"""


@pytest.mark.parametrize("kind", ["config.py", "epoch_12.pth"])
def test_mmdetections_whole_config(migrate, tmp_path, kind):
    path = tmp_path / kind
    if kind == "config.py":
        path.write_text(MMDETECTION)
    else:
        torch.save({"meta": {"cfg": MMDETECTION}, "state_dict": {"x": torch.zeros(1)}}, path)
    cfg, said = migrate("mmdetection", "--from-checkpoint", path, "--gpus", 8)
    detr, solver = cfg.MODEL.DETR, cfg.SOLVER
    assert (detr.NUM_OBJECT_QUERIES, detr.TWO_STAGE, detr.COST_BBOX, cfg.MODEL.RESNETS.DEPTH) == (50, True, 7.0, 101)
    assert (solver.AMP.ENABLED, solver.BASE_LR, solver.IMS_PER_BATCH) == (True, 0.0004, 16)
    assert (solver.MAX_ITER, tuple(solver.STEPS)) == (round(12 * 118287 / 16), (round(11 * 118287 / 16),))
    assert cfg.MODEL.WEIGHTS == "torchvision://resnet101"
    assert "WARNING" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("_base_ = ['x.py']\nmodel = dict(type='DETR')", "it refers to other files (_base_)"),
        ("model = dict(type='DINO')", "model.type 'DINO' is neither DETR nor DeformableDETR"),
        ("model = dict(type='DETR')\nimport os", "line 2 is not a value"),
        ("model = dict(type='DETR', queries=open('x'))", "line 1 is not a value"),
        ("model = dict(type='DETR', bbox_head=dict(num_reg_fcs=3))", "model.bbox_head.num_reg_fcs is no option of"),
        ("model = dict(type='DETR', neck=dict(norm_cfg=dict(type='BN')))", "model.neck.norm_cfg.type is an option of"),
        ("model = dict(type='DETR', backbone=dict(style='caffe'))", "model.backbone.style 'caffe': here it is always"),
    ],
)
def test_mmdetections_configs_that_are_refused(run, tmp_path, text, said):
    (tmp_path / "config.py").write_text(text)
    status, out, err = run("mmdetection", "--from-checkpoint", tmp_path / "config.py")
    assert (status, out) == (2, "") and said in err


def test_a_config_is_read_and_not_run(tmp_path):
    config = parse_config("a = [1, (2, -3.5), None, {'b': dict(c='d')}]", "x")
    assert config == {"a": [1, [2, -3.5], None, {"b": {"c": "d"}}]}

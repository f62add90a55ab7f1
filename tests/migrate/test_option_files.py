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
test_pipeline = [{'type': 'LoadImageFromFile'}, dict(type='PackDetInputs')]
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
        ("model = dict(type='DETR', data_preprocessor=dict(mean=None))", "model.data_preprocessor.mean None does not"),
        ("model = dict(type='DETR', backbone=dict(out_indices=3))", "model.backbone.out_indices 3: no value that"),
        ("model = [1]", "model.type None is neither"),
        ("model = dict(type=['DETR'])", "model.type ['DETR'] is neither"),
        ("model = dict(type='DETR')\na = {[1]: 2}", "line 2 is not a value"),
        ("model = dict(type='DETR')\na = {[1], 2}", "line 2 is not a value"),
        ("model = '\0'", "config.py: "),
    ],
)
def test_mmdetections_configs_that_are_refused(run, tmp_path, text, said):
    (tmp_path / "config.py").write_text(text)
    status, out, err = run("mmdetection", "--from-checkpoint", tmp_path / "config.py")
    assert (status, out) == (2, "") and said in err


def test_a_config_is_read_and_not_run(tmp_path):
    config = parse_config("a = [1, (2, -3.5), None, {'b': dict(c='d')}]", "x")
    assert config == {"a": [1, [2, -3.5], None, {"b": {"c": "d"}}]}


# Data, hooks and what is not read from a file, as the published configs have them; {} are the settings of one test.
PUBLISHED = """
model = dict(type='DeformableDETR')
EDGES = [(480, 1333), (512, 1333), (544, 1333), (576, 1333), (608, 1333), (640, 1333), (672, 1333), (704, 1333),
         (736, 1333), (768, 1333), (800, 1333)]
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[
        [dict(type='RandomChoiceResize', scales=EDGES, keep_ratio=True)],
        [dict(type='RandomChoiceResize', scales=[(400, 4200), (500, 4200), (600, 4200)], keep_ratio=True),
         dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
         dict(type='RandomChoiceResize', scales=EDGES, keep_ratio=True)]]),
    dict(type='PackDetInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=2, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CocoDataset', data_root='data/coco/', ann_file='annotations/instances_train2017.json',
                 data_prefix=dict(img='train2017/'), filter_cfg=dict(filter_empty_gt=False, min_size=32),
                 backend_args=None))
val_dataloader = dict(batch_size=1, dataset=dict(type='CocoDataset', ann_file='annotations/instances_val2017.json'))
test_evaluator = dict(type='CocoMetric', metric='bbox')
auto_scale_lr = dict(base_batch_size=32, enable=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'), logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3), visualization=dict(type='X'))
custom_hooks = []
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork'))
log_processor = dict(type='LogProcessor', window_size=50)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer')
backend_args = None
randomness = dict(seed=None, deterministic=False)
"""
EDGES = PUBLISHED.partition("EDGES = ")[2].partition("]\n")[0] + "]"
PUBLISHED = PUBLISHED.replace(f"EDGES = {EDGES}\n", "").replace("scales=EDGES", f"scales={EDGES}")


@pytest.fixture
def read_settings(migrate, tmp_path):
    """A published config with settings after it, to ours, and the options that were warned of."""

    def read(settings=""):
        (tmp_path / "config.py").write_text(PUBLISHED + settings)
        cfg, said = migrate("mmdetection", "--from-checkpoint", tmp_path / "config.py")
        marked = [line.partition("WARNING: ")[2] for line in said.splitlines() if "WARNING" in line]
        return cfg, [line.partition(" has no counterpart")[0] for line in marked]

    return read


def test_what_is_published_is_not_warned_of(read_settings, migrate):
    cfg, warned = read_settings()
    assert warned == []
    assert cfg == migrate("mmdetection", "--config", "deformable-detr_r50_16xb2-50e_coco")[0]


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ("auto_scale_lr = dict(enable=True)", ["auto_scale_lr.enable"]),
        ("train_pipeline = [dict(type='Mosaic')]", ["train_pipeline"]),
        (
            "train_dataloader = dict(dataset=dict(type='CocoDataset', pipeline=[dict(type='Mosaic')]))",
            ["train_dataloader.dataset.pipeline"],
        ),
        (
            "train_dataloader = dict(dataset=dict(type='RepeatDataset', times=5, dataset=dict(type='CocoDataset')))",
            [f"train_dataloader.dataset.{name}" for name in ("type", "times", "dataset")],
        ),
        (
            "train_dataloader = dict(dataset=dict(ann_file='mine.json', metainfo=dict(classes=('cat',))))",
            ["train_dataloader.dataset.ann_file", "train_dataloader.dataset.metainfo"],
        ),
        ("val_dataloader = dict(dataset=dict(ann_file='mine.json'))", ["val_dataloader.dataset.ann_file"]),
        ("custom_hooks = [dict(type='NumClassCheckHook')]", ["custom_hooks.NumClassCheckHook"]),
        ("custom_hooks = [dict(type='EMAHook'), dict(type='EMAHook', momentum=0.5)]", ["custom_hooks.1"]),
        ("default_hooks = dict(early_stopping=dict(type='EarlyStoppingHook'))", ["default_hooks.early_stopping"]),
        (
            "custom_hooks = [dict(type='EMAHook', update_buffers=True, priority=49)]",
            ["custom_hooks.EMAHook.update_buffers"],
        ),
    ],
)
def test_settings_that_change_training_are_warned_of(read_settings, settings, warned):
    assert read_settings(settings)[1] == warned


def test_hooks_of_mmengine_become_keys(read_settings):
    cfg, warned = read_settings(
        "default_hooks = dict(checkpoint=dict(type='CheckpointHook', save_best='coco/bbox_mAP_50', rule='less'))\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.0005, priority=49), dict(type='EarlyStoppingHook', "
        "monitor='coco/bbox_mAP_s', patience=3, min_delta=0.005, strict=True)]"
    )
    assert warned == []
    assert dict(cfg.TEST.BEST_CHECKPOINT) == {"ENABLED": True, "METRIC": "bbox/AP50", "MODE": "min"}
    stopping = {"ENABLED": True, "METRIC": "bbox/APs", "PATIENCE": 3, "MIN_DELTA": 0.5}
    assert dict(cfg.TEST.EARLY_STOPPING) == stopping
    assert dict(cfg.SOLVER.EMA) == {"ENABLED": True, "DECAY": 0.9995}


@pytest.mark.parametrize("best", ["'auto'", "'coco/bbox_mAP'", "['coco/bbox_mAP']"])
def test_the_best_checkpoint_and_the_hooks_own_defaults(read_settings, best):
    cfg, _ = read_settings(
        f"default_hooks = dict(checkpoint=dict(save_best={best}))\n"
        "custom_hooks = [dict(type='EarlyStoppingHook', monitor='coco/segm_mAP'), dict(type='EMAHook')]"
    )
    assert dict(cfg.TEST.BEST_CHECKPOINT) == {"ENABLED": True, "METRIC": "bbox/AP", "MODE": "max"}
    stopping = {"ENABLED": True, "METRIC": "segm/AP", "PATIENCE": 5, "MIN_DELTA": 10.0}
    assert dict(cfg.TEST.EARLY_STOPPING) == stopping
    assert dict(cfg.SOLVER.EMA) == {"ENABLED": True, "DECAY": 0.9998}


@pytest.mark.parametrize("value", ["[]", "[{'type':'EMAHook'}]", "[{'type':'X'}]"])
def test_hooks_on_the_command_line(run, value):
    words = ("--config", "detr_r50_8xb2-150e_coco", "--", f"custom_hooks={value}", "val_cfg.type=ValLoop")
    status, out, said = run("mmdetection", *words)
    assert status == 0 and ("SOLVER.EMA.ENABLED True" in out) == ("EMAHook" in value)
    assert ("custom_hooks.X has no counterpart" in said) == ("'X'" in value)
    assert "val_cfg.type has no counterpart" in said
    assert "no counterpart" not in run("mmdetection", "--ignore", "custom_hooks", "--ignore", "val_cfg", *words)[2]


def test_detrexs_average(migrate):
    words = ("train.model_ema.enabled=True", "train.model_ema.decay=0.9", "train.model_ema.device=cpu")
    cfg, said = migrate("detrex", "--config", "detr_r50_300ep", "--", *words)
    assert dict(cfg.SOLVER.EMA) == {"ENABLED": True, "DECAY": 0.9}
    assert said.count("WARNING") == 1 and "train.model_ema.device has no counterpart" in said


@pytest.mark.parametrize(
    ("source", "config", "said"),
    [
        ("transformers", "deformable_detr", "its model is DETR, which contradicts --config deformable_detr"),
        ("official", "main.py", "its model is DETR, which contradicts --config main.py, Deformable DETR"),
        ("mmdetection", "deformable-detr_r50_16xb2-50e_coco", "its model is DETR, which contradicts --config def"),
        ("mmdetection", "detr_r101_8xb2-500e_coco", "train_cfg.max_epochs is 150 in it and 500 in --config detr_r101"),
        ("transformers", "detr", ""),
        ("official", "detr", ""),
        ("mmdetection", "detr_r50_8xb2-150e_coco", ""),
    ],
)
def test_a_file_and_a_config_must_agree(run, tmp_path, source, config, said):
    path = tmp_path / {"transformers": "config.json", "official": "x.pth", "mmdetection": "x.py"}[source]
    if source == "official":
        write(path, **DETR_ARGS)
    else:
        path.write_text('{"model_type": "detr"}' if source == "transformers" else "model = dict(type='DETR')")
    status, out, err = run(source, "--from-checkpoint", path, "--config", config)
    assert (status == 2, out == "") == (bool(said), bool(said))
    assert said in err

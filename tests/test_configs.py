"""All YAML configs: both engines build the same model and take the same step; recipes match papers and file names."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from projects_deformable_detr import build_criterion, build_detector, get_cfg
from projects_deformable_detr.config.training import optimizer_config
from projects_deformable_detr.modeling import Targets, batch_images
from projects_deformable_detr.training import build_optimizer

FOLDER = Path(__file__).resolve().parents[1] / "configs"
PATHS = {str(path.relative_to(FOLDER).with_suffix("")): path for path in sorted(FOLDER.rglob("*.yaml"))}
COCO_IMAGES = 118_287  # train2017
# Epochs, and the epoch in which the learning rate drops: arXiv 2005.12872, section 4; arXiv 2010.04159, section 5.1.
DROPS = {50: 40, 300: 200, 500: 400}
CLASSES = 5
QUERIES = 20  # fewer than in the recipes: most of the time of a step is proportional to them
SIZES = ((64, 96), (48, 64))  # two images, the second is padded


def read(name, engine="standalone"):
    cfg = get_cfg(engine)
    cfg.merge_from_file(str(PATHS[name]))
    cfg.MODEL.DEVICE = "cpu"
    # Panoptic models keep their number of classes, which must agree with the number of things.
    cfg.MODEL.DETR.NUM_CLASSES = (cfg.MODEL.DETR.NUM_CLASSES or 10) if cfg.MODEL.DETR.PANOPTIC.ENABLED else CLASSES
    return cfg


def images_and_targets(with_masks):
    """Returns images (3, h, w) in 0-255, and two objects for the first image. Masks fill their boxes."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES]
    boxes = torch.tensor([[0.25, 0.5, 0.25, 0.5], [0.5, 0.5, 0.5, 0.25]])  # whole pixels
    masks = [torch.zeros(count, *size, dtype=torch.bool) for count, size in zip((2, 0), SIZES, strict=True)]
    masks[0][0, 16:48, 12:36] = masks[0][1, 24:40, 24:72] = True
    labels = [torch.tensor([1, 3]), torch.zeros(0, dtype=torch.int64)]
    wanted = masks if with_masks else [None, None]
    return images, [Targets(*parts) for parts in zip(labels, (boxes, boxes[:0]), wanted, strict=True)]


def unique_models():
    """Returns a name for each model: configs with equal models are tested once."""
    return list({read(name).MODEL.dump(): name for name in PATHS}.values())


def run_standalone(cfg, detector):
    """Returns losses by name, after the backward pass."""
    images, targets = images_and_targets(cfg.MODEL.MASK_ON)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    batch, mask = batch_images([(image - mean) / std for image in images])
    torch.manual_seed(1)  # dropout
    losses = build_criterion(cfg)(detector.train()(batch, mask), targets)
    sum(losses.values()).backward()
    return losses


def run_detectron2(name, weights, monkeypatch):
    """Returns the meta-architecture with these weights, and its losses, after the backward pass."""
    from detectron2.modeling import build_model
    from detectron2.structures import BitMasks, Boxes, Instances

    cfg = read(name, "detectron2")
    cfg.MODEL.DETR.NUM_OBJECT_QUERIES = QUERIES
    with monkeypatch.context() as patch:
        for function in ("kaiming_normal_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_"):
            patch.setattr(torch.nn.init, function, lambda tensor, *_, **__: tensor)  # slow; overwritten below
        model = build_model(cfg)
    model.detector.load_state_dict(weights, assign=True)
    records = []
    for image, target, (height, width) in zip(*images_and_targets(cfg.MODEL.MASK_ON), SIZES, strict=True):
        center, size = (target.boxes * torch.tensor([width, height, width, height])).split(2, dim=1)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([center - size / 2, center + size / 2], dim=1))
        instances.gt_classes = target.labels
        if target.masks is not None:
            instances.gt_masks = BitMasks(target.masks)
        records.append({"image": image, "instances": instances})
    torch.manual_seed(1)
    losses = model.train()(records)
    sum(losses.values()).backward()
    return model, losses


@pytest.mark.parametrize("name", unique_models())
def test_both_engines_build_the_model_and_take_one_step(name, monkeypatch):
    cfg = read(name)
    cfg.MODEL.DETR.NUM_OBJECT_QUERIES = QUERIES
    detector = build_detector(cfg)
    losses = run_standalone(cfg, detector)
    trained = {key: value for key, value in detector.named_parameters() if value.requires_grad}
    assert all(value.isfinite() for value in losses.values())
    assert [key for key, value in trained.items() if value.grad is None] == []
    if importlib.util.find_spec("detectron2"):
        model, found = run_detectron2(name, detector.state_dict(), monkeypatch)
        values = [{key: value.item() for key, value in item.items()} for item in (found, losses)]
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-5)
        named = {key: value for key, value in model.detector.named_parameters() if value.requires_grad}
        assert named.keys() == trained.keys()
        norms = [torch.stack([item[key].grad.norm() for key in trained]) for item in (named, trained)]
        torch.testing.assert_close(*norms, rtol=1e-2, atol=1e-4 * norms[1].max().item())
        del model, named
    config = optimizer_config(cfg)
    optimizer = build_optimizer(detector, config)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
    assert config.clip(trained.values()).isfinite()  # joint norm
    before = {key: value.detach().sum() for key, value in trained.items()}
    optimizer.step()
    moved = [key for key, value in trained.items() if not torch.equal(value.sum(), before[key])]
    assert len(moved) > 0.8 * len(trained)


@pytest.mark.parametrize("name", [name for name in PATHS if re.search(r"\d+ep$", name)])
def test_recipe_is_that_of_the_paper(name):
    cfg = read(name)
    epochs = int(re.search(r"(\d+)ep$", name)[1])
    per_epoch = COCO_IMAGES / cfg.SOLVER.IMS_PER_BATCH
    is_detr = cfg.MODEL.META_ARCHITECTURE == "DETR"
    assert (64 if is_detr else 32) == cfg.SOLVER.IMS_PER_BATCH
    assert round(epochs * per_epoch) == cfg.SOLVER.MAX_ITER
    assert tuple(cfg.SOLVER.STEPS) == (round(DROPS[epochs] * per_epoch),)
    assert (1e-4 if is_detr else 2e-4) == cfg.SOLVER.BASE_LR
    assert (0.1, 1.0 if is_detr else 0.1) == (cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.SAMPLING_MULTIPLIER)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.GAMMA) == ("ADAMW", 1e-4, 0.1)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 0.1)
    assert tuple(cfg.DATASETS.TRAIN) == ("coco_2017_train" + "_panoptic" * ("panoptic" in name),)
    detr = cfg.MODEL.DETR
    assert (detr.HIDDEN_DIM, detr.NHEADS, detr.DROPOUT, detr.ENC_LAYERS) == (256, 8, 0.1, 6)
    assert (2048 if is_detr else 1024) == detr.DIM_FEEDFORWARD
    focal = not is_detr or "plus" in name
    assert (300 if focal else 100) == detr.NUM_OBJECT_QUERIES
    weights = (detr.CLASS_WEIGHT, detr.L1_WEIGHT, detr.GIOU_WEIGHT, detr.COST_CLASS)
    assert weights == ((2, 5, 2, 2) if focal else (1, 5, 2, 1))


@pytest.mark.parametrize("name", PATHS)
def test_file_name_agrees_with_content(name):
    cfg = read(name)
    depth = re.search(r"_r(\d+)(?:_|$)", name)
    if depth:
        assert int(depth[1]) == cfg.MODEL.RESNETS.DEPTH
    if cfg.MODEL.WEIGHTS.startswith("./output/"):  # checkpoint of another config
        assert Path(cfg.MODEL.WEIGHTS).parent in [Path(read(other).OUTPUT_DIR) for other in PATHS if other != name]
    elif name.startswith("finetune_r50"):  # a published detector of the same architecture
        model = cfg.MODEL.WEIGHTS.removeprefix("zoo://")
        assert read(f"{model}_50ep").MODEL.DETR == cfg.MODEL.DETR
    elif cfg.MODEL.WEIGHTS.startswith("zoo://"):  # published weights of the same model
        assert f"zoo://{name}" == cfg.MODEL.WEIGHTS
    elif cfg.MODEL.WEIGHTS:
        swin = "swin" in cfg.MODEL.BACKBONE.NAME
        network = cfg.MODEL.BACKBONE.VARIANT if swin else f"resnet{cfg.MODEL.RESNETS.DEPTH}"
        assert f"torchvision://{network}" == cfg.MODEL.WEIGHTS
    assert (2 if "dc5" in name else 1) == cfg.MODEL.RESNETS.RES5_DILATION
    assert ("two_stage" in name) == cfg.MODEL.DETR.TWO_STAGE or "ep" not in name
    if not Path(name).name.startswith("Base-"):
        assert Path("output", name) == Path(cfg.OUTPUT_DIR)

"""Meta-architectures: inputs, losses and outputs in Detectron2's form."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.detectron2_plugin import DeformableDETR, data
from projects_deformable_detr.modeling import Predictions

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def record(height=64, width=80, boxes=((8.0, 16.0, 40.0, 48.0),), labels=(1,)):
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": 2 * height, "width": 3 * width}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_registry_builds_every_config(path):
    from projects_deformable_detr import get_cfg

    cfg = get_cfg("detectron2")
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "meta"
    if not cfg.DATASETS.TRAIN or cfg.DATASETS.TRAIN[0].startswith("shapes"):
        cfg.MODEL.DETR.NUM_CLASSES = 9  # things and stuff; by default read from a file that may be missing
    with torch.device("meta"):  # no memory, no initialization
        model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    assert all(key.startswith("detector.") for key in model.state_dict())


def test_explicit_arguments_build_the_same_model(make_cfg):
    cfg = make_cfg(MODEL__DETR__NUM_CLASSES=2)
    model = DeformableDETR(
        detector=build_detector(cfg),
        criterion=build_criterion(cfg),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
    assert model.state_dict().keys() == build_model(cfg).state_dict().keys()
    assert len(model.eval()([record()])[0]["instances"]) == 20


def test_training_returns_losses_and_logs_cardinality(make_cfg):
    model = build_model(make_cfg())
    batch = [record(), record(80, 64, boxes=(), labels=())]
    with EventStorage(start_iter=18) as storage:
        model(batch)
        assert not storage.latest()  # computed only when it is written
        storage.step()
        losses = model(batch)
    assert {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0"} <= losses.keys()
    assert not any("cardinality" in name for name in losses)
    assert storage.latest()["cardinality_error"][0] >= 0
    sum(losses.values()).backward()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


def test_a_record_without_annotations_is_named(make_cfg, coco_files):
    DatasetCatalog.register("unlabeled", lambda: [{"file_name": f"{coco_files[1]}/0.png", "image_id": 1}])
    cfg = make_cfg(DATASETS__TRAIN="('unlabeled',)", MODEL__DETR__NUM_CLASSES=2)
    assert data.resolve_num_classes(cfg) == 2
    with pytest.raises(DatasetError, match=r"0\.png has no annotations: training needs a list 'annotations'"):
        build_model(cfg)(next(iter(build_detection_train_loader(cfg))))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"boxes": ((40.0, 16.0, 8.0, 48.0),)}, r"box \(40, 16, 8, 48\) in pixels of 64 x 80 of a.jpg .* exchanged"),
        ({"boxes": ((8.0, 16.0, 83.0, 48.0),)}, r"box \(8, 16, 83, 48\) .* of a.jpg .* leaves its image"),
        ({"masks": torch.zeros(1, 64, 79, dtype=torch.bool)}, r"masks of a.jpg .* must have shape \(1, 64, 80\).*79"),
        ({"image": torch.zeros(3, 64, 81)}, r"a.jpg \(image id 7\) is 64 x 81, but its instances .* 64 x 80"),
    ],
)
def test_invalid_ground_truth_of_a_mapper_names_the_file(make_cfg, change, named):
    changed = record(boxes=change.get("boxes", ((8.0, 16.0, 40.0, 48.0),)))
    if "masks" in change:
        changed["instances"].gt_masks = change["masks"]
    changed |= {"file_name": "a.jpg", "image_id": 7, "image": change.get("image", changed["image"])}
    with pytest.raises(ValueError, match=named):
        build_model(make_cfg())([record(), changed])


@pytest.mark.parametrize("name", ["resnet", "d2_swin", "d2_vit", "d2_regnet", "build_resnet_fpn_backbone"])
@torch.no_grad()
def test_detections_do_not_depend_on_the_batch(make_cfg, name):
    options = {
        "resnet": {},
        "d2_swin": {"MODEL__DETR__IN_FEATURES": ["p1", "p2", "p3"], "MODEL__BACKBONE__VARIANT": "swin_t"},
        "d2_vit": {"MODEL__DETR__IN_FEATURES": ["p3", "p4", "p5"], "MODEL__BACKBONE__VARIANT": "vit_t"},
        "d2_regnet": {"MODEL__DETR__IN_FEATURES": ["s2", "s3", "s4"], "MODEL__BACKBONE__VARIANT": "regnetx_400mf"},
        "build_resnet_fpn_backbone": {
            "MODEL__DETR__IN_FEATURES": ["p3", "p4", "p5"],
            "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
            "MODEL__RESNETS__RES2_OUT_CHANNELS": 64,
            "MODEL__RESNETS__STEM_OUT_CHANNELS": 64,
        },
    }[name]
    builder = name if name.startswith("build") else f"build_deformable_detr_{name}_backbone"
    model = build_model(make_cfg(MODEL__BACKBONE__NAME=builder, **options)).eval()
    for parameter in model.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    records = [
        {"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8)} for size in ((70, 96), (64, 50), (97, 41))
    ]
    for inputs, together in zip(records, model(records), strict=True):
        (alone,) = model([inputs])
        expected, found = alone["instances"], together["instances"]
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-2)


def test_losses_are_float32_in_mixed_precision(make_cfg):
    model, batch = build_model(make_cfg()), [record(), record(48, 60)]
    expected = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.03, atol=0, msg=name)


def test_training_without_event_storage(make_cfg):
    assert sum(build_model(make_cfg())([record()]).values()).isfinite()


class Recorder(nn.Module):
    """Module that records its arguments and returns a constant."""

    def __init__(self, result, backbone=None):
        super().__init__()
        self.result = result
        self.backbone = backbone
        self.calls = []

    def forward(self, *arguments):
        self.calls.append(arguments)
        return self.result


def test_targets_are_normalized_by_the_size_of_the_image(make_cfg):
    model = build_model(make_cfg())
    model.criterion = Recorder({})
    model([record(64, 80), record(40, 40, boxes=((0.0, 0.0, 40.0, 20.0),), labels=(0,))])
    (_, targets), *_ = model.criterion.calls
    torch.testing.assert_close(targets[0].boxes, torch.tensor([[0.3, 0.5, 0.4, 0.5]]))
    torch.testing.assert_close(targets[1].boxes, torch.tensor([[0.5, 0.25, 1.0, 0.5]]))
    assert [target.labels.tolist() for target in targets] == [[1], [0]]


@pytest.mark.parametrize(("divisibility", "padded"), [(0, (80, 100)), (64, (128, 128))])
def test_images_are_normalized_and_padded_with_zeros(make_cfg, divisibility, padded):
    backbone = nn.Identity()
    backbone.size_divisibility, backbone.padding_constraints = divisibility, {}
    mean, std = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]
    detector = Recorder(Predictions(torch.zeros(1, 2, 5, 2), torch.zeros(1, 2, 5, 4), None), backbone)
    model = DeformableDETR(detector=detector, criterion=Recorder({}), pixel_mean=mean, pixel_std=std)
    sizes = [(80, 60), (50, 100)]
    model(
        [
            {"image": torch.full((3, *size), 40, dtype=torch.uint8), "instances": record(*size)["instances"]}
            for size in sizes
        ]
    )
    ((images, mask),) = model.detector.calls
    assert images.shape == (2, 3, *padded) and mask.shape == (2, *padded)
    for image, padding, (height, width) in zip(images, mask, sizes, strict=True):
        assert not padding[:height, :width].any() and padding.sum() == padded[0] * padded[1] - height * width
        assert (image[:, padding] == 0).all()
        assert image[:, ~padding].unique(dim=1).flatten().tolist() == [15.0, 5.0, 2.0]


def test_detections_have_the_size_of_the_record(make_cfg):
    model = build_model(make_cfg(TEST__DETECTIONS_PER_IMAGE=7)).eval()
    named, bare = record(), record()
    bare = {"image": bare["image"]}
    with torch.no_grad():
        outputs = [output["instances"] for output in model([named, bare])]
    assert [output.image_size for output in outputs] == [(128, 240), (64, 80)]
    for output in outputs:
        assert len(output) == 7
        assert output.scores.tolist() == sorted(output.scores.tolist(), reverse=True)
        assert output.pred_classes.max() < 2
        clipped = output.pred_boxes.clone()
        clipped.clip(output.image_size)
        assert torch.equal(clipped.tensor, output.pred_boxes.tensor)


def test_vis_period_puts_images_into_the_storage(make_cfg):
    model = build_model(make_cfg(VIS_PERIOD=2))
    with EventStorage(start_iter=1) as storage:
        model([record()])
        assert not storage._vis_data
        storage.step()
        model([record()])
        assert storage._vis_data[0][1].shape == (3, 64, 160)


def test_backbone_works_in_meta_architectures_of_detectron2(make_cfg):
    cfg = make_cfg(
        MODEL__META_ARCHITECTURE="RetinaNet",
        MODEL__RETINANET__IN_FEATURES=["res5"],
        MODEL__ANCHOR_GENERATOR__SIZES=[[32]],
        MODEL__RETINANET__NUM_CLASSES=2,
        MODEL__RETINANET__NUM_CONVS=1,
        MODEL__RESNETS__OUT_FEATURES=["res5"],
    )
    model = build_model(cfg)
    with EventStorage():
        assert sum(model([record()]).values()).isfinite()

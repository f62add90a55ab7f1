"""Test-time augmentation in the Detectron2 engine."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import build_detection_test_loader
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Boxes, Instances

from projects_deformable_detr.detectron2_plugin import main
from projects_deformable_detr.detectron2_plugin.tta import SetPredictionTTA
from projects_deformable_detr.errors import UserError

OBJECT = (8.0, 16.0, 40.0, 48.0)  # in an image of 64 x 80


def make_tta(make_cfg, **options):
    cfg = make_cfg(TEST__AUG__ENABLED=True, TEST__AUG__MIN_SIZES="(32, 64)", TEST__AUG__MAX_SIZE=200, **options)
    return GeneralizedRCNNWithTTA(cfg, build_model(cfg)).eval()


def detect_object(views, *, shift=0.0, masks=False):
    """Returns the output of a model that detects OBJECT, whose pixels are 255, in each view."""
    results = []
    for view in views:
        bright = view["image"][0] > 127
        rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
        box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float() + shift
        found = Instances((view["height"], view["width"]), pred_boxes=Boxes(box[None]))
        found.scores, found.pred_classes = torch.tensor([bright.float().mean().item()]), torch.tensor([1])
        if masks:
            found.pred_masks = bright[None]
        results.append({"instances": found})
    return results


def image():
    pixels = torch.zeros(3, 64, 80, dtype=torch.uint8)
    pixels[:, 16:48, 8:40] = 255
    return {"image": pixels, "height": 64, "width": 80}


def replace_model(tta, detect):
    """Replaces the model with a function and returns the list of views that it receives."""
    views = []

    def run(batch):
        views.extend(batch)
        return detect(batch)

    inner = SimpleNamespace(topk=tta.model.topk, input_format="RGB")
    tta.__dict__["_modules"].pop("model")
    tta.__dict__["model"] = type("Stub", (), {"__call__": lambda self, batch: run(batch), **vars(inner)})()
    return views


def test_class_of_detectron2_is_replaced_only_for_models_of_the_project(make_cfg):
    assert type(make_tta(make_cfg)) is SetPredictionTTA
    cfg = make_cfg()
    with pytest.raises(AssertionError, match="only supported on GeneralizedRCNN"):
        GeneralizedRCNNWithTTA(cfg, torch.nn.Linear(1, 1))


@pytest.mark.parametrize("masks", [False, True])
def test_views_are_merged_in_pixels_of_the_image(make_cfg, masks):
    tta = make_tta(make_cfg)
    views = replace_model(tta, lambda batch: detect_object(batch, masks=masks))
    (result,) = tta([image()])
    assert [tuple(view["image"].shape[-2:]) for view in views] == [(32, 40), (32, 40), (64, 80), (64, 80)]
    assert torch.equal(views[1]["image"], views[0]["image"].flip(-1))
    found = result["instances"]
    assert found.image_size == (64, 80) and len(found) == 1
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([OBJECT]), atol=2.0, rtol=0)
    if masks:
        expected = image()["image"][0] > 0
        assert found.pred_masks.shape == (1, 64, 80)
        overlap = (found.pred_masks[0] & expected).sum() / (found.pred_masks[0] | expected).sum()
        assert overlap > 0.9


def test_nms_threshold_and_topk(make_cfg):
    tta = make_tta(make_cfg, TEST__AUG__FLIP=False)
    replace_model(tta, lambda batch: detect_object(batch, shift=8.0 if batch[0]["height"] == 64 else 0.0))
    tta.batch_size = 1
    (result,) = tta([image()])
    assert len(result["instances"]) == 2
    tta.nms_threshold = 0.3
    assert len(tta([image()])[0]["instances"]) == 1
    tta.nms_threshold = 0.7
    tta.model.__class__.topk = 1
    assert len(tta([image()])[0]["instances"]) == 1


def test_records_without_pixels_are_read_from_their_file(make_cfg, coco_files):
    tta = make_tta(make_cfg)
    found = tta([{"file_name": f"{coco_files[1]}/1.png"}])[0]["instances"]
    assert found.image_size == (80, 64)


def test_a_single_view_gives_the_detections_of_the_model(make_cfg):
    cfg = make_cfg(TEST__AUG__MIN_SIZES="(64,)", TEST__AUG__MAX_SIZE=96, TEST__AUG__FLIP=False)
    cfg.MODEL.DETR.TTA_NMS_THRESH = 1.0
    model = build_model(cfg).eval()
    record = next(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])))
    with torch.no_grad():
        expected = model(record)[0]["instances"]
    found = SetPredictionTTA(cfg, model).eval()(record)[0]["instances"]
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=1e-4)


def test_panoptic_models_are_rejected(make_cfg):
    model = build_model(make_cfg())
    model.panoptic = {"things": (0, 1)}
    with pytest.raises(UserError, match="cannot be combined with panoptic segmentation"):
        SetPredictionTTA(make_cfg(), model)


def test_train_net_evaluates_with_and_without_augmentation(job, tmp_path, coco_files):
    options = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48, 64)", "TEST.AUG.MAX_SIZE", 96)
    main(job(tmp_path, coco_files, "SOLVER.MAX_ITER", 1, *options))
    weights = tmp_path / "output/model_final.pth"
    results = main(job(tmp_path, coco_files, "MODEL.WEIGHTS", weights, *options, eval_only=True))
    assert {"bbox", "bbox_TTA"} <= results.keys()
    assert (tmp_path / "output/inference_TTA/coco_instances_results.json").is_file()

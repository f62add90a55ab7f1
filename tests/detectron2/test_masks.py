"""Masks and panoptic segmentation in Detectron2: mapper, evaluator, and a short training."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from projects_deformable_detr import get_cfg
from projects_deformable_detr.data import panoptic
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.data.masks import encode
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.detectron2_plugin import DetrDatasetMapper
from projects_deformable_detr.detectron2_plugin.classes import is_standard, resolve_thing_classes
from projects_deformable_detr.detectron2_plugin.evaluation import build_evaluator
from projects_deformable_detr.detectron2_plugin.meta_arch import to_targets
from projects_deformable_detr.shapes import dataset as shapes

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
THINGS = 6


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Registers a panoptic and an instance data set of shapes with Detectron2's functions."""
    root = tmp_path_factory.mktemp("data")
    shapes.generate(root, num_train=8, num_val=0, size=(64, 80), seed=3)
    classes = [item["name"] for item in shapes.CATEGORIES]
    ids = [{c["id"]: i for i, c in enumerate(shapes.CATEGORIES) if c["isthing"] == kind} for kind in (1, 0)]
    metadata = {"thing_classes": classes, "stuff_classes": classes,
                "thing_dataset_id_to_contiguous_id": ids[0], "stuff_dataset_id_to_contiguous_id": ids[1]}  # fmt: skip
    files = [root / "train", root / "panoptic_train", root / "annotations/panoptic_train.json"]
    instances = root / "annotations/instances_train.json"
    register_coco_panoptic("tiny_panoptic", metadata, *map(str, (*files, instances)))
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("tiny_things", {}, str(instances), str(root / "train"))
    return "tiny_panoptic", "tiny_things"


def make_cfg(config, name, folder, *options):
    cfg = get_cfg("detectron2")
    cfg.merge_from_file(str(CONFIGS / config))
    tiny = ["MODEL.DEVICE", "cpu", "MODEL.DETR.DEC_LAYERS", 1, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4,
            "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SEED", 2, "OUTPUT_DIR", str(folder),
            "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)]  # fmt: skip
    cfg.merge_from_list([*tiny, *options])
    return cfg


def test_built_in_panoptic_data_sets():
    metadata = MetadataCatalog.get("shapes_val_panoptic")
    assert is_standard("shapes_val_panoptic") and is_standard("coco_2017_val_panoptic")
    assert not is_standard("coco_2017_val_panoptic_separated") and not is_standard("shapes_val")
    assert len(metadata.thing_classes) == 9 and metadata.thing_dataset_id_to_contiguous_id[1] == 0
    assert metadata.stuff_dataset_id_to_contiguous_id == {7: 6, 8: 7, 9: 8}
    cfg = get_cfg("detectron2")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco_2017_train_panoptic",), ("shapes_val_panoptic",)
    with pytest.raises(ValueError, match="coco_2017_train_panoptic has 80.*|80.*shapes_val_panoptic has 6"):
        resolve_thing_classes(cfg)


def test_mapper_equals_standalone_engine(names, tmp_path):
    """Without random augmentations, boxes, labels and masks are equal."""
    pytest.importorskip("lightning", reason="compares with the standalone engine")
    from projects_deformable_detr.config.training import augmentation_policy
    from projects_deformable_detr.standalone.data import DetectionDataset

    for name in names:
        cfg = make_cfg("quickstart_instance.yaml", name, tmp_path, "INPUT.RANDOM_FLIP", "none")
        cfg.INPUT.MIN_SIZE_TRAIN = (100,)
        mapper = DetrDatasetMapper(cfg, True)
        metadata = MetadataCatalog.get(name)
        if is_standard(name):
            spec = DatasetSpec(name, metadata.panoptic_json, metadata.image_root, metadata.panoptic_root)
        else:
            DatasetCatalog.get(name)
            spec = DatasetSpec(name, metadata.json_file, metadata.image_root)
        records = load_dataset(spec, masks=not is_standard(name))
        dataset = DetectionDataset(records, augmentation_policy(cfg, True), with_masks=True)
        for index, record in enumerate(sorted(DatasetCatalog.get(name), key=lambda item: item["image_id"])):
            mapped, target = to_targets(mapper(record)["instances"]), dataset[(0, index)].targets
            assert torch.equal(mapped.labels, target.labels)
            assert (mapped.masks != target.masks).float().mean() < 0.01  # ties are rounded differently
            torch.testing.assert_close(mapped.boxes, target.boxes, rtol=0, atol=1e-5)
            assert mapped.masks.shape[1] == 100 or mapped.masks.shape[2] == 100


def test_masks_are_cropped_and_empty_ones_dropped(names, tmp_path):
    options = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [24, 40], "INPUT.CROP.RESIZE", [60, 80])
    fewer = 0
    for name in names:
        mapper = DetrDatasetMapper(make_cfg("quickstart_instance.yaml", name, tmp_path, *options), True)
        for record in DatasetCatalog.get(name) * 3:
            instances = mapper(record)["instances"]
            found = instances.gt_masks.tensor
            assert found.flatten(1).any(1).all() and found.shape[1:] == instances.image_size
            boxes = torch.from_numpy(panoptic.mask_boxes(found.numpy()))
            torch.testing.assert_close(instances.gt_boxes.tensor, boxes)
            fewer += len(instances) < len(record.get("segments_info") or record["annotations"])
    assert fewer > 5


def test_images_without_objects_have_empty_masks(names, tmp_path):
    mapper = DetrDatasetMapper(
        make_cfg("quickstart_instance.yaml", names[1], tmp_path, "INPUT.CROP.ENABLED", True), True
    )
    record = {**DatasetCatalog.get(names[1])[0], "annotations": []}
    instances = mapper(record)["instances"]
    assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, *instances.image_size)


def test_polygons_from_detectron2_mapper():
    instances = Instances((6, 8), gt_boxes=Boxes(torch.tensor([[2.0, 1, 7, 4]])), gt_classes=torch.tensor([0]))
    instances.gt_masks = PolygonMasks([[np.array([2.0, 1, 7, 1, 7, 4, 2, 4])]])
    assert to_targets(instances).masks[0].sum() == 15


@pytest.mark.parametrize("counts", [[7, 3, 3, 3, 3, 3, 26], b"733000g0", "733000g0"])
def test_run_lengths_in_records(monkeypatch, tmp_path, counts):
    """Records of a user's function with a box of corners; Detectron2 fails for run lengths in a list."""
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    item = {"bbox": [1, 1, 4, 4], "bbox_mode": 0, "category_id": 0, "segmentation": {"size": [6, 8], "counts": counts}}
    record = {"file_name": str(tmp_path / "a.png"), "height": 6, "width": 8, "image_id": 1, "annotations": [item]}
    monkeypatch.setitem(DatasetCatalog.data, "runs", lambda: [copy.deepcopy(record)])
    MetadataCatalog.get("runs").thing_classes = ["a"]
    cfg = make_cfg("quickstart_instance.yaml", "runs", tmp_path, "INPUT.CROP.ENABLED", False)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (6,), "none"
    mask = DetrDatasetMapper(cfg, True)(record)["instances"].gt_masks.tensor
    expected = torch.zeros(1, 6, 8, dtype=torch.bool)
    expected[:, 1:4, 1:4] = True
    assert torch.equal(mask, expected)
    evaluator = build_evaluator(cfg, "runs")
    evaluator.reset()
    found = Instances((6, 8), pred_boxes=Boxes(torch.tensor([[1.0, 1, 4, 4]])), scores=torch.ones(1))
    found.pred_classes, found.pred_masks = torch.zeros(1, dtype=torch.int64), expected
    evaluator.process([record], [{"instances": found}])
    metrics = evaluator.evaluate()
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP"] == pytest.approx(100)
    item["segmentation"]["counts"] = counts[:-1]
    with pytest.raises(DatasetError, match=r"a\.png has an RLE"):
        DetrDatasetMapper(cfg, True)(record)
    with pytest.raises(DatasetError, match=r"a\.png has an RLE"):
        build_evaluator(cfg, "runs")


def test_outputs_of_a_panoptic_model(names, tmp_path):
    cfg = make_cfg("quickstart_panoptic.yaml", names[0], tmp_path, "MODEL.DETR.PANOPTIC.SCORE_THRESH", 0.0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        image = torch.randint(0, 256, (3, 64, 72))
        (output,) = model([{"image": image, "height": 50, "width": 60}])
    ids, segments = output["panoptic_seg"]
    assert ids.shape == (50, 60) and set(ids.unique().tolist()) - {0} == {item["id"] for item in segments}
    assert all(item["isthing"] == (item["category_id"] < THINGS) for item in segments)
    instances = output["instances"]
    assert instances.pred_masks.shape == (len(instances), 50, 60) and instances.pred_masks.dtype == torch.bool
    assert (instances.pred_classes < THINGS).all()
    assert isinstance(BitMasks(instances.pred_masks), BitMasks)


def test_objects_whose_mask_becomes_empty_are_dropped_and_counted(names, tmp_path):
    pytest.importorskip("lightning", reason="compares with the standalone engine")
    from projects_deformable_detr.config.training import augmentation_policy
    from projects_deformable_detr.standalone.data import DetectionDataset

    options = ("INPUT.RANDOM_FLIP", "none", "INPUT.CROP.ENABLED", False, "INPUT.MIN_SIZE_TRAIN", (16,))
    cfg = make_cfg("quickstart_panoptic.yaml", names[1], tmp_path, "MODEL.DETR.PANOPTIC.ENABLED", False, *options)
    record = copy.deepcopy(DatasetCatalog.get(names[1])[0])
    pixel = np.zeros((record["height"], record["width"]), bool)
    pixel[1, 1] = True  # between the pixels that a reduction to a quarter keeps
    record["annotations"][0]["segmentation"] = encode(pixel)
    number = len(record["annotations"]) - 1
    mapped = DetrDatasetMapper(cfg, True)(record)
    assert len(mapped["instances"]) == number and mapped["empty_masks"] == 1
    item = DetectionDataset([record], augmentation_policy(cfg, is_train=True), with_masks=True)[(0, 0)]
    assert len(item.targets) == number and item.empty_masks == 1

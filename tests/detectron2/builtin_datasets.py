"""Configs and predictions for tests of Detectron2's built-in data sets."""

from pathlib import Path

import dataset_formats
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from projects_deformable_detr.detectron2_plugin import DetrDatasetMapper
from projects_deformable_detr.detectron2_plugin.meta_arch import to_targets

# Name without the split: (classes, things, whether the model predicts masks, whether it is panoptic).
SETS = {
    "coco_2017": (80, 0, False, False),
    "keypoints_coco_2017": (1, 0, False, False),
    "voc_2007": (20, 0, False, False),
    "lvis_v1": (1203, 0, True, False),
    "cityscapes_fine_instance_seg": (8, 0, True, False),
    "coco_2017_panoptic": (133, 80, True, True),
    "coco_2017_panoptic_separated": (133, 80, True, True),
    "cityscapes_fine_panoptic": (19, 8, True, True),
}


def full_name(name, split):
    head, marker, tail = name.partition("_panoptic")
    return f"{head}_{split}{marker}{tail}" if name.startswith("coco") else f"{name}_{split}"


def options(name, folder):
    _, _, with_masks, is_panoptic = SETS[name]
    train, val = full_name(name, "train"), full_name(name, "val")
    features = ["res2", "res3", "res4", "res5"]
    tiny = {
        "MODEL.DEVICE": "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS": 8, "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
        "MODEL.DETR.DEC_LAYERS": 1, "MODEL.DETR.HIDDEN_DIM": 128 if with_masks else 32,
        "MODEL.DETR.NUM_OBJECT_QUERIES": 300,
        "DATALOADER.NUM_WORKERS": 0, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 2, "SOLVER.STEPS": "()",
        "INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": 64, "SEED": 2, "OUTPUT_DIR": str(folder),
        "DATASETS.TRAIN": f"('{train}',)", "DATASETS.TEST": f"('{val}',)", "MODEL.MASK_ON": with_masks,
        "MODEL.DETR.PANOPTIC.ENABLED": is_panoptic, "MODEL.DETR.PANOPTIC.SCORE_THRESH": 0.001,
        "MODEL.RESNETS.OUT_FEATURES": str(features if with_masks else features[1:]),
        "TEST.DETECTIONS_PER_IMAGE": 300 if name.startswith("lvis") else 20,
    }  # fmt: skip
    return [str(part) for pair in tiny.items() for part in pair]


def config_file(name):
    kind = "_panoptic" if SETS[name][3] else "_instance" if SETS[name][2] else ""
    return str(Path(__file__).resolve().parents[2] / f"configs/quickstart{kind}.yaml")


def truth_of(targets, classes, things):
    """Returns the output of a model that predicts the ground truth."""
    size = dataset_formats.SIZE
    kept = torch.tensor([not things or int(label) in things for label in targets.labels], dtype=torch.bool)
    center, extent = (targets.boxes[kept] * torch.tensor([size[1], size[0]] * 2)).split(2, dim=1)
    found = Instances(size, pred_boxes=Boxes(torch.cat((center - extent / 2, center + extent / 2), dim=1)))
    found.scores, found.pred_classes = torch.full((int(kept.sum()),), 0.9), targets.labels[kept]
    output = {"instances": found}
    if targets.masks is not None:
        found.pred_masks = targets.masks[kept]
    if classes is not None and targets.masks is not None:
        ids = torch.zeros(size, dtype=torch.int32)
        segments = []
        for number, (mask, label) in enumerate(zip(targets.masks, targets.labels.tolist(), strict=True), start=1):
            ids[mask] = number
            is_thing = label in classes.things
            segments.append({"id": number, "category_id": classes.segment_ids[label], "isthing": is_thing})
        output["panoptic_seg"] = ids, segments
        if classes.is_separated:
            labels = torch.zeros(size, dtype=torch.int64)
            for item in segments:
                labels[ids == item["id"]] = 0 if item["isthing"] else item["category_id"]
            output["sem_seg"] = torch.nn.functional.one_hot(labels, 54).permute(2, 0, 1)
    return output


def perfect(cfg, dataset, evaluator, classes=None, things=None):
    """Returns the metrics of the ground truth as predictions, optionally of the classes ``things`` only."""
    evaluator.reset()
    mapper = DetrDatasetMapper(cfg, True)
    for record in DatasetCatalog.get(dataset):
        targets = to_targets(mapper(record)["instances"])
        evaluator.process([record], [truth_of(targets, classes, things or (classes.things if classes else ()))])
    return evaluator.evaluate()

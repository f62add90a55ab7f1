"""What becomes of the values of ``main.py``'s options, where it is more than another name."""

from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .rows import Change, Theirs, ratio

DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101}


def backbone(value: str, theirs: Theirs) -> Mapping[str, Any]:
    """Depth, and ImageNet weights unless a detector is named."""
    if value not in DEPTHS:
        raise UserError(f"--backbone {value}: the ResNets here are {', '.join(DEPTHS)}")
    ours: dict[str, Any] = {"MODEL.RESNETS.DEPTH": DEPTHS[value]}
    if not theirs["frozen_weights"] and not theirs["resume"]:
        ours["MODEL.WEIGHTS"] = f"torchvision://{value}"
    return ours


def levels(value: Any, theirs: Theirs) -> Mapping[str, Any]:
    """``value`` is of the option that is there in one model, and names DETR's single level in the other."""
    count = theirs.get("num_feature_levels", 1)
    features = ["res5"] if count == 1 else ["res3", "res4", "res5"]
    masks = ["res2", "res3", "res4", "res5"]
    return {
        "MODEL.DETR.NUM_FEATURE_LEVELS": count,
        "MODEL.DETR.IN_FEATURES": features,
        "MODEL.RESNETS.OUT_FEATURES": masks if theirs["masks"] else features,
    }


def backbone_rate(value: float, theirs: Theirs) -> Mapping[str, Any]:
    """As a multiple of ``lr``; 0 freezes."""
    if theirs["lr"] <= 0:
        raise UserError(f"--lr {theirs['lr']}: the backbone's rate is told here as a multiple of it, above 0")
    if value <= 0:
        return {"MODEL.BACKBONE.FREEZE_AT": 5, "SOLVER.BACKBONE_MULTIPLIER": 0.0}
    return {"MODEL.BACKBONE.FREEZE_AT": 2, "SOLVER.BACKBONE_MULTIPLIER": ratio(value, theirs["lr"])}


def batch(theirs: Theirs) -> int:
    """Images of all GPUs together."""
    return theirs.batch("batch_size")


def drops(value: int, theirs: Theirs) -> Mapping[str, Any]:
    """The schedule's steps, in iterations."""
    if value < 1:
        raise UserError(f"--lr_drop {value}: the rate drops after so many epochs, 1 or more")
    epochs = range(value, theirs["epochs"], value)
    return {"SOLVER.STEPS": tuple(theirs.iterations(epoch, batch(theirs)) for epoch in epochs), "SOLVER.GAMMA": 0.1}


def clip(value: float, _: Theirs) -> Mapping[str, Any]:
    """Clipping of the gradient norm."""
    at = "SOLVER.CLIP_GRADIENTS"
    return {f"{at}.ENABLED": True, f"{at}.CLIP_VALUE": value} if value > 0 else {f"{at}.ENABLED": False}


def dataset(value: str, theirs: Theirs) -> Mapping[str, Any]:
    """Our names of COCO's parts, and the classes of its panoptic ones."""
    if value not in ("coco", "coco_panoptic"):
        raise UserError(f"--dataset_file {value}: other data sets are named by --register and DATASETS here")
    panoptic = value == "coco_panoptic"
    tail = "_panoptic" * panoptic
    ours: dict[str, Any] = {"DATASETS.TRAIN": (f"coco_2017_train{tail}",), "DATASETS.TEST": (f"coco_2017_val{tail}",)}
    if panoptic and theirs["masks"]:
        ours |= {"MODEL.DETR.NUM_CLASSES": 133, "MODEL.DETR.PANOPTIC.ENABLED": True}
        ours["MODEL.DETR.PANOPTIC.NUM_THING_CLASSES"] = 80
    return ours


def resume(value: str, _: Theirs) -> Mapping[str, Any]:
    """A file of weights."""
    if value.startswith("http"):
        raise UserError(f"--resume {value}: download it, and name the file")
    return {"MODEL.WEIGHTS": value} if value else {}


def frozen(value: str | None, _: Theirs) -> Mapping[str, Any]:
    """A file of weights, which then are not trained."""
    return {"MODEL.WEIGHTS": value, "MODEL.DETR.MASKS.FREEZE_DETECTOR": True} if value else {}


def key(name: str, function: Any, text: str) -> tuple[tuple[str, ...], Change]:
    """One key whose value is a function of theirs alone."""
    return (name,), Change(text, lambda value, _: {name: function(value)})


def iterations(value: int, theirs: Theirs) -> Mapping[str, Any]:
    """Of the whole training."""
    return {"SOLVER.MAX_ITER": theirs.iterations(value, batch(theirs))}


def total(_: int, theirs: Theirs) -> Mapping[str, Any]:
    """As `batch`, for its key."""
    return {"SOLVER.IMS_PER_BATCH": batch(theirs)}

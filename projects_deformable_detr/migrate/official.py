"""Options of ``main.py`` in facebookresearch/detr (DETR) and fundamentalvision/Deformable-DETR (Deformable DETR)."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..checkpoint.files import read_content
from ..errors import UserError
from .rows import NOT_THERE, Change, Preset, Reading, Row, Source, Theirs, changed, fixed, none, ratio, same

_DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101}
_DATA = "it lies below `$DETECTRON2_DATASETS/coco` here, or is named by `--register`"
_UNREAD = "their code does not read it either"
_LAUNCH = "`--num-gpus`, `--num-machines`, `--dist-url` of `train_net.py` start processes"


def _backbone(value: str, theirs: Theirs) -> Mapping[str, Any]:
    if value not in _DEPTHS:
        raise UserError(f"--backbone {value}: the ResNets here are {', '.join(_DEPTHS)}")
    ours: dict[str, Any] = {"MODEL.RESNETS.DEPTH": _DEPTHS[value]}
    if not theirs["frozen_weights"] and not theirs["resume"]:
        ours["MODEL.WEIGHTS"] = f"torchvision://{value}"
    return ours


def _levels(value: Any, theirs: Theirs) -> Mapping[str, Any]:
    """``value`` is of the option that is there in one model, and names DETR's single level in the other."""
    levels = theirs.get("num_feature_levels", 1)
    features = ["res5"] if levels == 1 else ["res3", "res4", "res5"]
    masks = ["res2", "res3", "res4", "res5"]
    return {
        "MODEL.DETR.NUM_FEATURE_LEVELS": levels,
        "MODEL.DETR.IN_FEATURES": features,
        "MODEL.RESNETS.OUT_FEATURES": masks if theirs["masks"] else features,
    }


def _backbone_rate(value: float, theirs: Theirs) -> Mapping[str, Any]:
    if value <= 0:
        return {"MODEL.BACKBONE.FREEZE_AT": 5, "SOLVER.BACKBONE_MULTIPLIER": 0.0}
    return {"MODEL.BACKBONE.FREEZE_AT": 2, "SOLVER.BACKBONE_MULTIPLIER": ratio(value, theirs["lr"])}


def _batch(theirs: Theirs) -> int:
    return int(theirs["batch_size"] * theirs.gpus)


def _drops(value: int, theirs: Theirs) -> Mapping[str, Any]:
    epochs = range(value, theirs["epochs"], value)
    return {"SOLVER.STEPS": tuple(theirs.iterations(epoch, _batch(theirs)) for epoch in epochs), "SOLVER.GAMMA": 0.1}


def _clip(value: float, _: Theirs) -> Mapping[str, Any]:
    clip = "SOLVER.CLIP_GRADIENTS"
    return {f"{clip}.ENABLED": True, f"{clip}.CLIP_VALUE": value} if value > 0 else {f"{clip}.ENABLED": False}


def _dataset(value: str, theirs: Theirs) -> Mapping[str, Any]:
    if value not in ("coco", "coco_panoptic"):
        raise UserError(f"--dataset_file {value}: other data sets are named by --register and DATASETS here")
    panoptic = value == "coco_panoptic"
    tail = "_panoptic" * panoptic
    ours: dict[str, Any] = {"DATASETS.TRAIN": (f"coco_2017_train{tail}",), "DATASETS.TEST": (f"coco_2017_val{tail}",)}
    if panoptic and theirs["masks"]:
        ours |= {"MODEL.DETR.NUM_CLASSES": 133, "MODEL.DETR.PANOPTIC.ENABLED": True}
        ours["MODEL.DETR.PANOPTIC.NUM_THING_CLASSES"] = 80
    return ours


def _resume(value: str, _: Theirs) -> Mapping[str, Any]:
    if value.startswith("http"):
        raise UserError(f"--resume {value}: download it, and name the file")
    return {"MODEL.WEIGHTS": value} if value else {}


def _frozen(value: str | None, _: Theirs) -> Mapping[str, Any]:
    return {"MODEL.WEIGHTS": value, "MODEL.DETR.MASKS.FREEZE_DETECTOR": True} if value else {}


def _key(key: str, function: Any, text: str) -> tuple[tuple[str, ...], Change]:
    """One key whose value is a function of theirs alone."""
    return (key,), Change(text, lambda value, _: {key: function(value)})


def _iterations(value: int, theirs: Theirs) -> Mapping[str, Any]:
    return {"SOLVER.MAX_ITER": theirs.iterations(value, _batch(theirs))}


def _total(_: int, theirs: Theirs) -> Mapping[str, Any]:
    return {"SOLVER.IMS_PER_BATCH": _batch(theirs)}


_D = "MODEL.DETR"
_TRAINING: tuple[Row, ...] = (
    same("lr", "SOLVER.BASE_LR", detr=1e-4, deformable=2e-4),
    fixed("lr_backbone_names", "the backbone's group is all below `backbone`", deformable=["backbone.0"]),
    changed(
        "lr_backbone",
        ("SOLVER.BACKBONE_MULTIPLIER", "MODEL.BACKBONE.FREEZE_AT"),
        Change("divided by `lr`; 0 freezes: 5, else 2", _backbone_rate),
        detr=1e-5,
        deformable=2e-5,
    ),
    fixed(
        "lr_linear_proj_names",
        "the slow group is the sampling offsets and the reference points' projection",
        deformable=["reference_points", "sampling_offsets"],
    ),
    same("lr_linear_proj_mult", "SOLVER.SAMPLING_MULTIPLIER", deformable=0.1),
    same("", "SOLVER.SAMPLING_MULTIPLIER", detr=1.0, note="DETR has no slow group"),
    changed("batch_size", ("SOLVER.IMS_PER_BATCH",), Change("times GPUs", _total), both=2, note="of one GPU there"),
    same("weight_decay", "SOLVER.WEIGHT_DECAY", both=1e-4),
    changed("epochs", ("SOLVER.MAX_ITER",), Change("times images ÷ batch", _iterations), detr=300, deformable=50),
    changed(
        "lr_drop",
        ("SOLVER.STEPS", "SOLVER.GAMMA"),
        Change("its multiples, in iterations; × 0.1", _drops),
        detr=200,
        deformable=40,
    ),
    none("lr_drop_epochs", _UNREAD, deformable=None),
    changed(
        "clip_max_norm",
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "SOLVER.CLIP_GRADIENTS.ENABLED"),
        Change("the same; 0 switches it off", _clip),
        both=0.1,
    ),
    changed(
        "sgd",
        *_key("SOLVER.OPTIMIZER", lambda value: "SGD" if value else "ADAMW", "`SGD`, else `ADAMW`"),
        deformable=False,
    ),
)
_MODEL: tuple[Row, ...] = (
    same("with_box_refine", f"{_D}.WITH_BOX_REFINE", deformable=False),
    same("two_stage", f"{_D}.TWO_STAGE", deformable=False),
    changed(
        "frozen_weights",
        ("MODEL.WEIGHTS", f"{_D}.MASKS.FREEZE_DETECTOR"),
        Change("the file; `True`", _frozen),
        both=None,
        note="the file may be theirs",
    ),
    changed(
        "backbone",
        ("MODEL.RESNETS.DEPTH", "MODEL.WEIGHTS"),
        Change("`resnet50` → 50, `torchvision://resnet50`", _backbone),
        both="resnet50",
        note="18, 34, 50, 101",
    ),
    changed(
        "dilation",
        *_key("MODEL.RESNETS.RES5_DILATION", lambda value: 2 if value else 1, "2, else 1"),
        both=False,
    ),
    same("position_embedding", f"{_D}.POSITION_EMBEDDING", both="sine"),
    none("position_embedding_scale", f"{_UNREAD}: 2π in both", deformable=6.283185307179586),
    changed(
        "num_feature_levels",
        (f"{_D}.NUM_FEATURE_LEVELS", f"{_D}.IN_FEATURES", "MODEL.RESNETS.OUT_FEATURES"),
        Change("1 → `res5`, more → `res3` to `res5`", _levels),
        deformable=4,
        note="`OUT_FEATURES` has `res2` too with `--masks`",
    ),
    same("enc_layers", f"{_D}.ENC_LAYERS", both=6),
    same("dec_layers", f"{_D}.DEC_LAYERS", both=6),
    same("dim_feedforward", f"{_D}.DIM_FEEDFORWARD", detr=2048, deformable=1024),
    same("hidden_dim", f"{_D}.HIDDEN_DIM", both=256),
    same("dropout", f"{_D}.DROPOUT", both=0.1),
    same("nheads", f"{_D}.NHEADS", both=8),
    same("num_queries", f"{_D}.NUM_OBJECT_QUERIES", detr=100, deformable=300),
    same("pre_norm", f"{_D}.PRE_NORM", detr=False),
    same("dec_n_points", f"{_D}.DEC_N_POINTS", deformable=4),
    same("enc_n_points", f"{_D}.ENC_N_POINTS", deformable=4),
    same("masks", "MODEL.MASK_ON", both=False),
    changed(
        "",
        ("MODEL.RESNETS.OUT_FEATURES", f"{_D}.IN_FEATURES", f"{_D}.NUM_FEATURE_LEVELS"),
        Change("`res5`; `OUT_FEATURES` all with `--masks`", _levels),
        detr="res5",
        note="DETR's one level",
    ),
)
_LOSS: tuple[Row, ...] = (
    same("aux_loss", f"{_D}.DEEP_SUPERVISION", both=True, note="`--no_aux_loss`: `False`"),
    same("set_cost_class", f"{_D}.COST_CLASS", detr=1.0, deformable=2.0),
    same("set_cost_bbox", f"{_D}.COST_BBOX", both=5.0),
    same("set_cost_giou", f"{_D}.COST_GIOU", both=2.0),
    same("mask_loss_coef", f"{_D}.MASKS.MASK_WEIGHT", both=1.0),
    same("dice_loss_coef", f"{_D}.MASKS.DICE_WEIGHT", both=1.0),
    same("cls_loss_coef", f"{_D}.CLASS_WEIGHT", deformable=2.0),
    same("", f"{_D}.CLASS_WEIGHT", detr=1.0, note="a constant in DETR"),
    same("bbox_loss_coef", f"{_D}.L1_WEIGHT", both=5.0),
    same("giou_loss_coef", f"{_D}.GIOU_WEIGHT", both=2.0),
    same("eos_coef", f"{_D}.NO_OBJECT_WEIGHT", detr=0.1),
    same("focal_alpha", f"{_D}.FOCAL_ALPHA", deformable=0.25),
)
_RUN: tuple[Row, ...] = (
    changed(
        "dataset_file",
        (
            "DATASETS.TRAIN",
            "DATASETS.TEST",
            f"{_D}.NUM_CLASSES",
            f"{_D}.PANOPTIC.ENABLED",
            f"{_D}.PANOPTIC.NUM_THING_CLASSES",
        ),
        Change("`coco`, `coco_panoptic` → our names", _dataset),
        both="coco",
        note="with `coco_panoptic` and `--masks`: 133, `True`, 80",
    ),
    none("coco_path", _DATA, detr=None, deformable="./data/coco"),
    none("coco_panoptic_path", _DATA, both=None),
    none("remove_difficult", "it has no effect on COCO there either", both=False),
    Row("output_dir", ("OUTPUT_DIR",), "", "", note="empty there: nothing is saved; here always", only_given=True),
    Row("device", ("MODEL.DEVICE",), "cuda", "cuda", only_given=True),
    Row("seed", ("SEED",), 42, 42, note="their default is not taken over", only_given=True),
    changed(
        "resume",
        ("MODEL.WEIGHTS",),
        Change("the file", _resume),
        both="",
        note="weights only: the optimizer's state and the epoch stay behind",
    ),
    none("start_epoch", "training starts at iteration 0, or goes on with `--resume`", both=0),
    same("eval", "--eval-only", both=False, note="a flag of `train_net.py`"),
    Row("num_workers", ("DATALOADER.NUM_WORKERS",), 2, 2, note="their default is not taken over", only_given=True),
    none("cache_mode", "images are read from the disk", deformable=False),
    none("world_size", _LAUNCH, detr=1),
    none("dist_url", _LAUNCH, detr="env://"),
)
ROWS = _TRAINING + _MODEL + _LOSS + _RUN
_FLAGS = {"aux_loss": "--no_aux_loss"}
_NUMBERS = {"position_embedding_scale": float, "lr_drop_epochs": int}

PRESETS = {
    "main.py": Preset("deformable_detr", gpus=16),
    "r50_deformable_detr_single_scale": Preset("deformable_detr", {"num_feature_levels": 1}, 16),
    "r50_deformable_detr_single_scale_dc5": Preset("deformable_detr", {"num_feature_levels": 1, "dilation": True}, 16),
    "r50_deformable_detr": Preset("deformable_detr", gpus=16),
    "r50_deformable_detr_plus_iterative_bbox_refinement": Preset("deformable_detr", {"with_box_refine": True}, 16),
    "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage": Preset(
        "deformable_detr", {"with_box_refine": True, "two_stage": True}, 16
    ),
    "detr": Preset("detr", gpus=8),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"their command line: {message}")


def display(option: str) -> str:
    """As it is written."""
    return _FLAGS.get(option, f"--{option}")


def parse(source: Source, words: list[str]) -> Reading:
    """``main.py``'s command line, or a script of ``configs/`` and what follows it; abbreviations are understood."""
    preset, words = _script(words)
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    added = set()
    for row in source.rows:
        if row.option and row.option not in added:
            _add(parser, row.option, row.detr if row.deformable is NOT_THERE else row.deformable)
            added.add(row.option)
    known, left = parser.parse_known_args(words)
    stray = [word for word in left if word.startswith("--")] or left
    # Told of together with the other options that are not theirs.
    return Reading(vars(known) | {word.lstrip("-").partition("=")[0]: None for word in stray}, preset)


def _script(words: list[str]) -> tuple[str, list[str]]:
    """Leaves out the program of a pasted line; a script of theirs tells the preset."""
    programs = [index for index, word in enumerate(words) if word.endswith((".py", ".sh")) and "=" not in word]
    if not programs:
        return "", words
    name = words[programs[-1]].rpartition("/")[2].removesuffix(".sh")
    return ("" if name.endswith(".py") else name), words[programs[-1] + 1 :]


def _add(parser: argparse.ArgumentParser, option: str, default: Any) -> None:
    if isinstance(default, bool):
        parser.add_argument(display(option), dest=option, action="store_false" if default else "store_true")
    elif isinstance(default, list) or option == "lr_drop_epochs":
        parser.add_argument(f"--{option}", nargs="+", type=_NUMBERS.get(option, str))
    else:
        parser.add_argument(f"--{option}", type=str if default is None else type(default))


def read(source: Source, path: str) -> Reading:
    """The command line in a checkpoint of theirs, as far as it differs from the defaults; the GPUs it tells too."""
    content = read_content(Path(path)) if Path(path).is_file() else None
    arguments = content.get("args") if isinstance(content, dict) else None
    if not isinstance(arguments, argparse.Namespace):
        raise UserError(f"{path}: no checkpoint with the official code's command line (args) in it")
    found = vars(arguments)
    model = "deformable_detr" if "num_feature_levels" in found else "detr"
    preset = "detr" if model == "detr" else "main.py"
    values = {}
    for option, value in found.items():
        row = source.row(option, model)
        if option not in source.without_effect and not (row and row.default(model) == value):
            values[option] = value
    gpus = found.get("world_size")
    values.pop("world_size", None)
    return Reading(values, preset, gpus if isinstance(gpus, int) and gpus > 0 else None)


# Written into the command line when processes start, there or by the cluster's launcher.
_OF_PROCESSES = (
    "rank gpu distributed dist_backend dist_url override_resumed_lr_drop ngpus nodes timeout job_dir partition comment "
    "use_volta32"
)

OFFICIAL = Source(
    "official",
    ROWS,
    PRESETS,
    parse,
    read,
    default="main.py",
    display=display,
    without_effect=frozenset(_OF_PROCESSES.split()),
)

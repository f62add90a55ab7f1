"""Detectron2's config keys and defaults, as far as this engine reads them, on fvcore's ``CfgNode``.

Both engines read the same YAML files. A Detectron2 key therefore falls into one of three kinds here: the engine
reads it; it belongs to another architecture and has no effect in either engine (ignored); or it switches on
something that only Detectron2's engine does (refused, unless it holds the value that switches it off).
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode as _CfgNode

from ..errors import UserError
from ..modeling.backbones import BACKBONES

VERSION = 2

_DEFAULTS: dict[str, Any] = {
    "VERSION": VERSION,
    "MODEL": {
        # auto: cuda where there is one, else cpu. The engine says which it took.
        "DEVICE": "auto",
        "META_ARCHITECTURE": "",
        "MASK_ON": False,
        "WEIGHTS": "",
        "PIXEL_MEAN": [103.530, 116.280, 123.675],
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "BACKBONE": {"NAME": "", "FREEZE_AT": 2},
        "RESNETS": {
            "DEPTH": 50,
            "OUT_FEATURES": ["res4"],
            "NORM": "FrozenBN",
            "STRIDE_IN_1X1": True,
            "RES5_DILATION": 1,
            "RES2_OUT_CHANNELS": 256,
            "STEM_OUT_CHANNELS": 64,
            "DEFORM_ON_PER_STAGE": [False, False, False, False],  # res2 … res5
            "DEFORM_MODULATED": False,
            "DEFORM_NUM_GROUPS": 1,
        },
        "FPN": {"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": "", "FUSE_TYPE": "sum"},
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": (800,),
        "MIN_SIZE_TRAIN_SAMPLING": "choice",
        "MAX_SIZE_TRAIN": 1333,
        "MIN_SIZE_TEST": 800,  # 0: images keep their size
        "MAX_SIZE_TEST": 1333,
        "RANDOM_FLIP": "horizontal",
        "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
        "FORMAT": "BGR",
    },
    "DATASETS": {"TRAIN": (), "TEST": ()},
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "ASPECT_RATIO_GROUPING": True,
        "FILTER_EMPTY_ANNOTATIONS": True,
        "SAMPLER_TRAIN": "TrainingSampler",
        "REPEAT_THRESHOLD": 0.0,  # share of the images; of classes in fewer, images are repeated
        "REPEAT_SQRT": True,
    },
    "SOLVER": {
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR",  # WarmupMultiStepLR | WarmupCosineLR
        "MAX_ITER": 40000,
        "BASE_LR": 0.001,
        "BASE_LR_END": 0.0,  # WarmupCosineLR
        "MOMENTUM": 0.9,
        "NESTEROV": False,
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0,
        "WEIGHT_DECAY_BIAS": None,
        "BIAS_LR_FACTOR": 1.0,
        "GAMMA": 0.1,
        "STEPS": (30000,),
        "WARMUP_FACTOR": 1.0 / 1000,
        "WARMUP_ITERS": 1000,
        "WARMUP_METHOD": "linear",  # linear | constant
        "RESCALE_INTERVAL": False,
        "CHECKPOINT_PERIOD": 5000,
        "IMS_PER_BATCH": 16,  # over all processes and machines together
        "CLIP_GRADIENTS": {"ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0},
        "AMP": {"ENABLED": False},
    },
    "TEST": {
        "EVAL_PERIOD": 0,
        "DETECTIONS_PER_IMAGE": 100,
        "AUG": {
            "ENABLED": False,
            "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
            "MAX_SIZE": 4000,
            "FLIP": True,
        },
    },
    "OUTPUT_DIR": "./output",
    "SEED": -1,  # negative: drawn anew for each run, and kept when a run resumes
    "CUDNN_BENCHMARK": False,
    "FLOAT32_PRECISION": "",
}

# What only Detectron2's engine does, with the value that switches it off.
_ONLY_DETECTRON2: dict[str, Any] = {
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "TEST.EXPECTED_RESULTS": [],
    "TEST.PRECISE_BN.ENABLED": False,
    "VIS_PERIOD": 0,
}

# What Detectron2 looks up by name. This engine has what the project brings, and nothing else to look up.
_CHOICES = {
    "MODEL.META_ARCHITECTURE": ("DeformableDETR", "DETR"),
    "MODEL.BACKBONE.NAME": tuple(BACKBONES),
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "WeightedTrainingSampler",
        "WeightedCategoryTrainingSampler",
    ),
}

# Keys, and whole sections, that do nothing for this project's models in Detectron2 either, or only refine a key above.
_NO_EFFECT = (
    "MODEL.PROPOSAL_GENERATOR", "MODEL.ANCHOR_GENERATOR", "MODEL.RPN", "MODEL.ROI_HEADS",
    "MODEL.ROI_BOX_HEAD", "MODEL.ROI_BOX_CASCADE_HEAD", "MODEL.ROI_MASK_HEAD", "MODEL.ROI_KEYPOINT_HEAD",
    "MODEL.SEM_SEG_HEAD", "MODEL.PANOPTIC_FPN", "MODEL.RETINANET", "INPUT.MASK_FORMAT", "DATASETS.PROPOSAL_FILES_TRAIN",
    "DATASETS.PROPOSAL_FILES_TEST", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", "DATALOADER.RANDOM_SUBSET_RATIO",
    "SOLVER.NUM_DECAYS", "TEST.KEYPOINT_OKS_SIGMAS", "TEST.PRECISE_BN", "GLOBAL",
)  # fmt: skip


class ConfigError(UserError):
    """A key or value that this engine cannot follow; the message names it, where it stands, and what to do."""


class CfgNode(_CfgNode):
    """fvcore's ``CfgNode`` (``_BASE_``, types kept) whose errors name every wrong key and its likely meaning."""

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merges a YAML file and its ``_BASE_`` files.

        Raises:
            ConfigError: if the file is missing, or has keys that do not exist or that only Detectron2 follows.
        """
        if not Path(cfg_filename).is_file():
            raise ConfigError(f"config file {cfg_filename!r} does not exist: check --config-file")
        loaded = self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe) or {}
        version = loaded.get("VERSION", VERSION)
        if version != VERSION:
            raise ConfigError(f"{cfg_filename}: VERSION is {version}, but only version {VERSION} can be read")
        kept = self._own_keys(dict(_leaves(loaded)), where=cfg_filename)
        self.merge_from_other_cfg(_nested(kept, type(self)))

    def merge_from_list(self, cfg_list: list[str]) -> None:
        """Merges ``[key, value, key, value, …]`` of the command line; errors as :meth:`merge_from_file`."""
        late = [word for word in cfg_list if str(word).startswith("--")]
        if late:
            raise ConfigError(f"command line: {late[0]} must stand before the first KEY VALUE")
        if len(cfg_list) % 2:
            raise ConfigError(f"command line: {cfg_list[-1]!r} has no value; options come in pairs, KEY VALUE")
        given = {key: self._decode_cfg_value(value) for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True)}
        kept = self._own_keys(given, where="command line")
        super().merge_from_list([item for pair in kept.items() for item in pair])

    def _own_keys(self, given: dict[str, Any], where: str) -> dict[str, Any]:
        """The keys that this config has; unknown ones raise, those without an effect are left out."""
        known, kept, wrong = dict(_leaves(self)), {}, []
        for key, value in given.items():
            if value not in _CHOICES.get(key, (value,)):
                wrong.append(
                    f"{key} {value!r} is not in this engine, which has {', '.join(_CHOICES[key])} only: choose one "
                    "of these, or use --engine detectron2, which has every one that is registered with Detectron2"
                )
            elif key in known:
                kept[key] = value
            elif any(name.startswith(key + ".") for name in known):
                wrong.append(f"{key} is a section, not a key: name the key within it")
            elif key in _ONLY_DETECTRON2:
                if value not in (_ONLY_DETECTRON2[key], tuple(_as_list(_ONLY_DETECTRON2[key]))):
                    wrong.append(
                        f"{key} = {value!r} asks for something that only Detectron2's engine does: "
                        f"use --engine detectron2, or set it to {_ONLY_DETECTRON2[key]!r}"
                    )
            elif not any(key == name or key.startswith(name + ".") for name in _NO_EFFECT):
                near = difflib.get_close_matches(key, known, n=1)
                wrong.append(f"config key {key} does not exist" + (f"; did you mean {near[0]}?" if near else ""))
        if wrong:
            raise ConfigError(f"{where}: " + "\n".join(wrong))
        return kept


def get_cfg() -> CfgNode:
    """Detectron2's keys with their defaults; :func:`projects_deformable_detr.get_cfg` adds the project's."""
    return CfgNode(_DEFAULTS).clone()


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its full dotted key."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(leaves: dict[str, Any], node_type: type) -> Any:
    """The inverse of :func:`_leaves`."""
    root = node_type()
    for key, value in leaves.items():
        node = root
        *sections, name = key.split(".")
        for section in sections:
            node = node.setdefault(section, node_type())
        node[name] = value
    return root

"""Detectron2's config keys that the standalone engine supports, with Detectron2's default values.

Both engines read the same YAML files. Keys of other architectures are ignored. Keys of features that exist only in
Detectron2's engine are accepted only with the value that disables the feature.
"""

from collections.abc import Mapping
from typing import Any

from fvcore.common.config import CfgNode as _CfgNode

from ..config import leaves
from ..config.keys import SECTIONS_WITHOUT_EFFECT
from ..config.model import BACKBONES
from ..data.config import SAMPLERS
from ..errors import UserError, did_you_mean

_VERSION = 2

_DEFAULTS: dict[str, Any] = {
    "VERSION": _VERSION,
    "MODEL": {
        # auto: cuda if there is a GPU, else cpu
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
            "NUM_GROUPS": 1,
            "WIDTH_PER_GROUP": 64,
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
        "REPEAT_THRESHOLD": 0.0,  # images of classes in a smaller share of the images are repeated
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
    "SEED": -1,  # negative: drawn for each run; a resumed run keeps it
    "CUDNN_BENCHMARK": False,
    "FLOAT32_PRECISION": "",
}

# Features of Detectron2's engine, with the value that disables them.
_ONLY_DETECTRON2: dict[str, Any] = {
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.KEYPOINT_ON": False,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "TEST.EXPECTED_RESULTS": [],
    "TEST.PRECISE_BN.ENABLED": False,
    "VIS_PERIOD": 0,
}

# Names that Detectron2 looks up in its registries; this engine supports only those of the project.
_CHOICES: dict[str, tuple[str, ...]] = {
    "MODEL.META_ARCHITECTURE": ("DeformableDETR", "DETR"),
    "MODEL.BACKBONE.NAME": tuple(BACKBONES),
    "DATALOADER.SAMPLER_TRAIN": SAMPLERS,
}

# Ignored keys and sections: they have no effect on the project's models, or only refine a key above.
_IGNORED = (
    *SECTIONS_WITHOUT_EFFECT, "INPUT.MASK_FORMAT", "DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
    "DATALOADER.RANDOM_SUBSET_RATIO", "SOLVER.NUM_DECAYS", "TEST.KEYPOINT_OKS_SIGMAS", "TEST.PRECISE_BN", "GLOBAL",
)  # fmt: skip


class CfgNode(_CfgNode):
    """fvcore's ``CfgNode`` with errors for keys that this engine does not support."""

    def merge_from_other_cfg(self, cfg_other: "CfgNode") -> None:
        """Merges a config, such as that of a YAML file.

        Raises:
            UserError: for unknown or unsupported keys; the message lists them.
        """
        super().merge_from_other_cfg(_nested(self._supported(dict(leaves(cfg_other)))))

    def merge_from_list(self, cfg_list: list[str]) -> None:
        """Merges ``[key, value, key, value, …]``; see `merge_from_other_cfg` for errors."""
        given = {key: self._decode_cfg_value(value) for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True)}
        super().merge_from_list([item for pair in self._supported(given).items() for item in pair])

    def _supported(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the given keys without the ignored ones; raises `UserError` for unknown and unsupported keys."""
        known, kept, problems = dict(leaves(self)), {}, []
        for key, value in given.items():
            if value not in _CHOICES.get(key, (value,)):
                problems.append(
                    f"{key} must be one of {', '.join(_CHOICES[key])} in this engine, got {value!r}: names of "
                    "Detectron2's registries need --engine detectron2"
                )
            elif key in known:
                kept[key] = value
            elif any(name.startswith(f"{key}.") for name in known):
                problems.append(f"{key} is a section, not a key: name the key within it")
            elif key in _ONLY_DETECTRON2:
                if (list(value) if isinstance(value, tuple) else value) != _ONLY_DETECTRON2[key]:
                    problems.append(
                        f"{key} {value!r} is supported by Detectron2's engine only: use --engine detectron2, or set it "
                        f"to {_ONLY_DETECTRON2[key]!r}"
                    )
            elif not any(key == name or key.startswith(f"{name}.") for name in _IGNORED):
                problems.append(f"config key {key} does not exist{did_you_mean(key, known)}")
        if kept.get("VERSION", _VERSION) != _VERSION:
            problems.append(f"VERSION must be {_VERSION}, got {kept['VERSION']}")
        if problems:
            raise UserError("\n".join(problems))
        return kept


def default_cfg() -> CfgNode:
    """Returns a new config with Detectron2's default values."""
    return CfgNode(_DEFAULTS).clone()


def _nested(flat: Mapping[str, Any]) -> CfgNode:
    """Converts dotted keys to a nested config, the inverse of `leaves`."""
    root = CfgNode()
    for key, value in flat.items():
        node = root
        *sections, name = key.split(".")
        for section in sections:
            node = node.setdefault(section, CfgNode())
        node[name] = value
    return root

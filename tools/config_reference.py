#!/usr/bin/env python3
"""Updates the defaults and ranges of config keys in a document, and prints the keys that it lacks.

tools/config_reference.py docs/config.md

Ranges are collected from the dataclasses and constructors that check them.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

try:
    from projects_deformable_detr import training
    from projects_deformable_detr.config.data import DATA_KEYS, SAMPLER_KEYS
    from projects_deformable_detr.config.evaluation import EVALUATION_KEYS, TTA_KEYS
    from projects_deformable_detr.config.keys import OTHER_RANGES, SECTIONS_WITHOUT_EFFECT, get_cfg
    from projects_deformable_detr.config.loading import leaves
    from projects_deformable_detr.config.model import CRITERION_KEYS, DETECTOR_KEYS, FPN_KEYS, RESNET_KEYS, SWIN_KEYS
    from projects_deformable_detr.config.run import PROCESS_KEYS, ProcessConfig
    from projects_deformable_detr.config.training import (
        CALLBACKS_KEYS,
        CLIP_KEYS,
        EARLY_STOPPING_KEYS,
        EMA_KEYS,
        EVALUATION_AUGMENTATION_KEYS,
        OPTIMIZER_KEYS,
        SCHEDULE_KEYS,
        TRAINING_AUGMENTATION_KEYS,
    )
    from projects_deformable_detr.data.config import DataConfig, SamplerConfig
    from projects_deformable_detr.engine import is_installed
    from projects_deformable_detr.errors import Annotation, annotations, run_command
    from projects_deformable_detr.evaluation import EvaluationConfig, TestTimeAugmentationConfig
    from projects_deformable_detr.modeling import CriterionConfig, DetectorConfig
    from projects_deformable_detr.modeling.fpn import BackboneWithFPN
    from projects_deformable_detr.modeling.resnet import ResNet
    from projects_deformable_detr.modeling.swin import SwinBackbone
except ImportError as error:  # the operator is missing
    sys.exit(f"config_reference: {error}")

_RECEIVERS: tuple[tuple[type, Mapping[str, str]], ...] = (
    (DetectorConfig, DETECTOR_KEYS),
    (CriterionConfig, CRITERION_KEYS),
    (ResNet, RESNET_KEYS),
    (SwinBackbone, SWIN_KEYS),
    (BackboneWithFPN, FPN_KEYS),
    (training.OptimizerConfig, OPTIMIZER_KEYS),
    (training.GradientClip, CLIP_KEYS),
    (training.ScheduleConfig, SCHEDULE_KEYS),
    (training.CallbacksConfig, CALLBACKS_KEYS),
    (training.EmaConfig, EMA_KEYS),
    (training.EarlyStoppingConfig, EARLY_STOPPING_KEYS),
    (training.AugmentationPolicy, TRAINING_AUGMENTATION_KEYS),
    (training.AugmentationPolicy, EVALUATION_AUGMENTATION_KEYS),
    (DataConfig, DATA_KEYS),
    (SamplerConfig, SAMPLER_KEYS),
    (EvaluationConfig, EVALUATION_KEYS),
    (TestTimeAugmentationConfig, TTA_KEYS),
    (ProcessConfig, PROCESS_KEYS),
)


_TYPES: dict[type, str] = {
    bool: "boolean", str: "string", list: "list", tuple: "list", int: "integer", float: "number", type(None): "number"
}  # fmt: skip


def ranges() -> dict[str, Annotation]:
    """Returns the range of each numeric key, sorted by key."""
    found = {
        keys[name]: annotation
        for owner, keys in _RECEIVERS
        for name, annotation in annotations(owner).items()
        if name in keys
    }
    return dict(sorted((found | OTHER_RANGES).items()))


def reference() -> dict[str, tuple[str, str]]:
    """Returns the default and the type or range of each key that affects the project's models.

    Keys of Detectron2's engine are included if it is installed.
    """
    defaults = dict(leaves(get_cfg("standalone")))
    if is_installed("detectron2"):
        defaults = dict(leaves(get_cfg("detectron2"))) | defaults
    known = ranges()
    return {
        key: (repr(value), str(known[key]) if key in known else _TYPES[type(value)])
        for key, value in defaults.items()
        if not key.startswith(SECTIONS_WITHOUT_EFFECT)
    }


def update(document: str) -> tuple[str, set[str]]:
    """Replaces defaults and ranges in the rows ``| `KEY` | default | range | meaning |`` of a Markdown document.

    Returns:
        The document, and the keys without a row.
    """
    missing = reference()

    def row(match: re.Match[str]) -> str:
        default, kind = missing.pop(match[1])
        return f"| `{match[1]}` | `{default}` | {kind} | {match[2]} |"

    known = "|".join(map(re.escape, missing))
    document = re.sub(rf"^\| `({known})` \| .* \| .* \| (\S.*) \|$", row, document, flags=re.MULTILINE)
    return document, set(missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path, help="Markdown document to update, such as docs/config.md")
    path = parser.parse_args().document
    text, without_row = update(path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    print("\n".join(sorted(without_row)))


if __name__ == "__main__":
    sys.exit(run_command("config_reference", main))

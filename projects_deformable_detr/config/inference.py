"""Configuration of trained models: the config of a checkpoint, its classes, and metadata for inference."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from fvcore.common.config import CfgNode

from ..checkpoint import CheckpointError, LoadOptions, Weights, fit
from ..checkpoint.classes import match_names
from ..checkpoint.load import file_classes
from ..data import catalog
from ..data.images import ImageReader
from ..data.load import read_classes
from ..errors import ArgumentError, PositiveInt, Range, UserError, check_ranges
from ..evaluation import EvaluationConfig, TestTimeAugmentationConfig
from ..modeling import CriterionConfig, Detector, DetectorConfig
from ..zoo.coco_classes import THINGS, THINGS_AND_STUFF
from .checkpoint import LOADING_KEYS, load_options
from .data import dataset_names, image_reader, register_data_sets
from .evaluation import EVALUATION_KEYS, tta_config
from .keys import check_other_ranges, get_cfg, set_thing_classes, thing_classes
from .loading import merge, merge_known
from .model import BACKBONES, BackboneConfig, backbone_config, criterion_config, detector_config, detector_of
from .reading import naming_keys, read

METADATA_KEYS = {
    "has_masks": "MODEL.MASK_ON",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "min_size": "INPUT.MIN_SIZE_TEST",
    "max_size": "INPUT.MAX_SIZE_TEST",
}
COCO_NAMES = {len(THINGS): THINGS, len(THINGS_AND_STUFF): THINGS_AND_STUFF}
# A config file, the name of a recipe, or a nested mapping, such as a CfgNode of either engine.
ConfigSource = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class ModelMetadata:
    """Properties of a model that `Detector` needs in addition to its weights; stored in exported files as JSON.

    Attributes:
        class_names: class names, indexed by class id.
        no_object: whether the last logit is "no object" (softmax). If False, all logits are classes (sigmoid).
        has_masks: whether the model has a mask head.
        pixel_mean, pixel_std: normalization of the channels in the order of ``reader.format``, for values in 0–255.
        min_size, max_size: images are resized to this shorter side, unless the longer side would exceed ``max_size``;
            a ``min_size`` of 0 keeps the size.
        reader: channel order and conversion of images.
        evaluation: postprocessing.
        tta: views of test-time augmentation, whether or not it is enabled.
        input_size: (H, W) of the input of a model with a fixed size, to which images are resized with their aspect
            ratio and padded; None for any size.
        batch_size: batch size of a model whose batch size is fixed; None for any batch size.
    """

    class_names: tuple[str, ...]
    no_object: bool = False
    has_masks: bool = False
    pixel_mean: Annotated[tuple[float, ...], Range()] = (123.675, 116.28, 103.53)
    pixel_std: Annotated[tuple[float, ...], Range(above=0)] = (58.395, 57.12, 57.375)
    min_size: Annotated[int, Range(0)] = 800
    max_size: PositiveInt = 1333
    reader: ImageReader = field(default_factory=ImageReader)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tta: TestTimeAugmentationConfig | None = None
    input_size: tuple[int, int] | None = None
    batch_size: Annotated[int | None, Range(1)] = None

    def __post_init__(self) -> None:
        check_ranges(ModelMetadata, vars(self))
        names, size = self.class_names, self.input_size
        if not (isinstance(names, tuple) and names and all(isinstance(name, str) for name in names)):
            raise ArgumentError("class_names", f"must be a tuple of at least one name, got {names!r}")
        if not (size is None or (isinstance(size, tuple) and [*map(type, size)] == [int, int] and min(size) > 0)):
            raise ArgumentError("input_size", f"must be (H, W) in pixels, got {size!r}")
        for name in ("pixel_mean", "pixel_std"):
            if len(getattr(self, name)) != 3:
                raise ArgumentError(name, f"must have three values, one per channel, got {getattr(self, name)}")

    def to_json(self) -> str:
        """Returns the metadata as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelMetadata":
        """Returns the metadata of a JSON object written by `to_json`.

        Raises:
            UserError: for invalid JSON, or unknown, missing or invalid fields.
        """
        try:
            return _build(cls, json.loads(text))
        except (ArgumentError, TypeError, ValueError) as error:
            raise UserError(f"the metadata of the model is invalid ({error}): export it again") from error


_NESTED = {"reader": ImageReader, "evaluation": EvaluationConfig, "tta": TestTimeAugmentationConfig}


def _build(kind: type[Any], values: Any) -> Any:
    """Builds a dataclass from JSON, in which tuples are lists and nested dataclasses are objects."""
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} must be an object, got {values!r}")
    if unknown := values.keys() - {item.name for item in fields(kind)}:
        raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name in _NESTED.keys() & arguments.keys():
        if not (name == "tta" and arguments[name] is None):
            arguments[name] = _build(_NESTED[name], arguments[name])
    return kind(**arguments)


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a trained model.

    Attributes:
        detector, backbone, criterion: architecture and losses.
        loading: options for loading the weights.
        class_names: names of the classes, "N/A" for unused logits; None if they are unknown.
        metadata: preprocessing, postprocessing and class names, which are assumed if they are unknown: those of COCO
            for 80 and 133 classes, otherwise numbers.
    """

    detector: DetectorConfig
    backbone: BackboneConfig
    criterion: CriterionConfig
    loading: LoadOptions
    class_names: tuple[str, ...] | None
    metadata: ModelMetadata

    def build(self) -> Detector:
        """Builds the detector with random weights; errors refer to config keys."""
        return detector_of(self.detector, self.backbone.build())

    def load(self, weights: Weights, source: str) -> Detector:
        """Builds the detector and loads its weights.

        Args:
            weights: content of the checkpoint.
            source: name of the checkpoint for messages.

        Raises:
            CheckpointError: if the weights do not match; the message contains config keys.
        """
        with torch.random.fork_rng(devices=()):  # the initial weights are replaced
            detector = self.build()
        with naming_keys(LOADING_KEYS):
            fitting, _ = fit(detector, weights, source, self.loading)
        detector.load_state_dict(fitting, strict=False)
        return detector.eval()


class MissingConfigError(UserError):
    """Raised for a checkpoint that has no config."""


def read_config(
    path: Path, stored: str | None, config: ConfigSource | None = None, options: Sequence[str] = ()
) -> CfgNode:
    """Returns the config of a checkpoint as a config of the standalone engine.

    Keys that this engine lacks are ignored, except in a config file.

    Args:
        path: checkpoint file, or a Hugging Face folder.
        stored: config in the checkpoint, or None.
        config: replaces the config of the checkpoint; None: that in the checkpoint, or ``config.yaml`` in its folder.
        options: keys and values to merge, ``[key, value, key, value, …]``.

    Raises:
        MissingConfigError: if there is no config.
        UserError: for an invalid config; the message contains the file.
    """
    cfg, source = get_cfg("standalone"), "config"
    if isinstance(config, str | os.PathLike):
        merge(cfg, os.fspath(config), options)
    else:
        content: object = config
        if config is None:
            content, source = _stored_config(path, stored)
        elif not isinstance(config, Mapping):
            wanted = "must be a file, the name of a recipe or a CfgNode"
            raise ArgumentError("config", f"{wanted}, got {type(config).__name__}")
        if not isinstance(content, Mapping):
            raise UserError(f"{source} has no config sections, such as MODEL: use a YAML file like those in configs/")
        try:
            merge_known(cfg, content)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        merge(cfg, "", options)
    if cfg.MODEL.BACKBONE.NAME not in BACKBONES:
        raise UserError(
            f"{source}: MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} is a backbone of Detectron2's registry, which "
            "needs Detectron2's DefaultPredictor"
        )
    return cfg


def _stored_config(path: Path, text: str | None) -> tuple[object, str]:
    """Reads the config in a checkpoint, or in its folder, and returns its content and the file's path."""
    file = path if text is not None else (path if path.is_dir() else path.parent) / "config.yaml"
    if not file.is_file():
        raise MissingConfigError(
            f"{path} contains no config, and there is no config.yaml next to it: pass config, a YAML file or "
            "the name of a recipe such as deformable_detr_r50_50ep (--config-file on the command line)"
        )
    try:
        content: object = CfgNode.load_yaml_with_base(str(file)) if text is None else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise UserError(
            f"{file}: the config is not valid YAML ({problem}): pass another with config (--config-file on the command "
            "line)"
        ) from error
    except TypeError:  # raised by fvcore for an empty file
        content = None
    return content, str(file)


def data_set_classes(cfg: CfgNode, weights: Weights, register: Sequence[Sequence[str]] = ()) -> tuple[str, ...] | None:
    """Returns the class names of the first data set in a config that is COCO 2017 or has an annotation file.

    COCO 2017 is the default of the configs: its classes are returned only if the checkpoint has all of them or, if its
    classes are unknown, has the same number.

    Args:
        cfg: config of either engine.
        weights: content of the checkpoint.
        register: see `register_data_sets`.
    """
    register_data_sets(cfg, register)
    for name in dataset_names(cfg):
        if name.startswith("coco_2017_"):
            names = THINGS_AND_STUFF if "panoptic" in name else THINGS
            _, count, stored = file_classes(weights, criterion_config(cfg).class_loss == "softmax")
            found = len(match_names(names, stored)) if stored else count
            return names if found == len(names) else None
        if name in catalog.names() and Path(catalog.get(name).json_file).is_file():
            return read_classes(catalog.get(name), drop_root_category=cfg.DATASETS.DROP_ROOT_CATEGORY).names
    return None


def read_model(
    cfg: CfgNode,
    weights: Weights,
    source: str,
    class_names: tuple[str, ...] | None = None,
    *,
    keep_unused: bool = False,
) -> ModelConfig:
    """Reads the configuration of a trained model, and resolves its classes.

    They are ``class_names``, or the classes of the file without those of unused logits. Sets
    ``MODEL.DETR.NUM_CLASSES`` to their number if it is 0, and the thing classes of COCO's panoptic models, in ``cfg``.

    Args:
        cfg: config of the checkpoint; see `read_config`.
        weights: content of the checkpoint.
        source: name of the checkpoint for messages.
        class_names: classes to load from the file by name; None, or with ``MODEL.DETR.KEEP_CLASS_LOGITS``: those of
            the file.
        keep_unused: whether to keep unused logits, as with ``MODEL.DETR.KEEP_CLASS_LOGITS``.

    Raises:
        CheckpointError: if the file contains no detector.
        UserError: for an invalid value; the message contains the key.
    """
    check_other_ranges(cfg)
    detr = cfg.MODEL.DETR
    format, count, stored = file_classes(weights, criterion_config(cfg).class_loss == "softmax")
    if format is None or format.is_backbone:
        found = "unknown weights" if format is None else "the weights of a backbone"
        raise CheckpointError(f"{source}: must contain a detector, got {found}")
    used = tuple(name for name in stored or () if name is not None)
    all_names = tuple(name or "N/A" for name in stored or ())
    choices = [all_names, used] if keep_unused or detr.KEEP_CLASS_LOGITS else [used, all_names]
    if class_names and not detr.KEEP_CLASS_LOGITS:
        choices = [class_names]
    detr.NUM_CLASSES = num_classes = detr.NUM_CLASSES or len(choices[0]) or count
    if choices == [class_names] and len(choices[0]) != num_classes:
        raise UserError(
            f"MODEL.DETR.NUM_CLASSES is {num_classes}, but there are {len(choices[0])} classes to load from {source}: "
            "set it to 0, or set MODEL.DETR.KEEP_CLASS_LOGITS True to load the logits unchanged"
        )
    names = next((choice for choice in choices if len(choice) == num_classes), None)
    assumed = names or COCO_NAMES.get(num_classes) or tuple(f"class {index}" for index in range(num_classes))
    if detr.PANOPTIC.ENABLED and not thing_classes(cfg) and assumed == THINGS_AND_STUFF:
        set_thing_classes(cfg, range(len(THINGS)))
    detector = detector_config(cfg)
    metadata = read(
        ModelMetadata,
        cfg,
        METADATA_KEYS,
        class_names=assumed,
        no_object=detector.no_object,
        reader=image_reader(cfg),
        evaluation=read(EvaluationConfig, cfg, EVALUATION_KEYS, thing_classes=thing_classes(cfg)),
        tta=None if detr.PANOPTIC.ENABLED else tta_config(cfg),
    )
    loaded = None if names is None or "N/A" in names else names  # unused logits are not matched by name
    options = load_options(cfg, for_evaluation=True, class_names=loaded)
    return ModelConfig(detector, backbone_config(cfg), criterion_config(cfg), options, names, metadata)

"""This project's detectors for others: the official repositories' names, and Hugging Face's folders."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..version import __version__
from . import coco_classes, hf_config, hugging_face, layout, official, resnet
from .files import CheckpointError, write_atomically
from .keys import backbone_names
from .names import NameTable, State

# The logit of a class that is never called: its sigmoid and its softmax are 0 in half precision too.
_NEVER = -100.0
_HEAD = re.compile(r"(decoder\.class_heads\.\d+|queries\.class_head)\.(weight|bias)")


def write_official(path: str | Path, detector: nn.Module, coco_names: Sequence[str] | None = None) -> None:
    """A ``.pth`` that the official DETR or Deformable DETR loads, strictly.

    Args:
        path: the file.
        detector: with a ResNet of batch norms.
        coco_names: of the detector's classes; given, its logits go to COCO's category ids.

    Raises:
        CheckpointError: if the official code has no such model, or the names are not COCO's.
    """
    state = _portable(detector)
    if coco_names is not None:
        state = _at_category_ids(state, coco_names, bool(getattr(detector, "no_object", False)))
    deformable = layout.is_deformable(state)
    state = layout.join_queries(state)
    if not deformable:
        write_atomically(path, {"model": _with_masks(_rename(state, official.DETR))})
        return
    state = _rename(layout.share_heads(state), official.DEFORMABLE_DETR)
    # A refining model's decoder holds the box heads once more, and a two-stage model's the class heads too.
    copies = ("bbox_embed.",) * bool(getattr(detector.decoder, "refine", False))
    copies += ("class_embed.",) * ("transformer.enc_output.weight" in state)
    state |= {f"transformer.decoder.{key}": value for key, value in state.items() if key.startswith(copies)}
    write_atomically(path, {"model": state})


def write_hugging_face(folder: str | Path, detector: nn.Module, cfg: Any, names: Sequence[str] | None = None) -> None:
    """A folder that ``from_pretrained`` of transformers reads: config, weights, and the image processor's config.

    Raises:
        CheckpointError: if transformers has no such model, or safetensors is not installed.
    """
    try:
        from safetensors.torch import save_file  # an optional package, needed for such files only
    except ImportError as error:
        raise CheckpointError(f"{folder}: writing it needs the safetensors package: pip install safetensors") from error
    config = hf_config.make(cfg, detector, names)
    state = _portable(detector)
    deformable = layout.is_deformable(state)
    if config["backbone_config"]["model_type"] == "resnet":
        state = backbone_names(state, "hugging-face")
    state = layout.split_projections(layout.join_queries(state))
    if deformable:
        state = _rename(layout.share_heads(state), hugging_face.DEFORMABLE_DETR)
    else:
        state = _with_masks(_rename(state, hugging_face.DETR))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Each a tensor of its own: the format does not store shared ones.
    tensors = {key: value.detach().clone().contiguous() for key, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "projects_deformable_detr": __version__})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    processor = hf_config.make_processor(cfg, deformable)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def _portable(detector: nn.Module) -> State:
    """The detector's weights, on the CPU, with torchvision's names of the ResNet and no counters."""
    state = backbone_names({key: value.detach().cpu() for key, value in detector.state_dict().items()})
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    backbone = {key.removeprefix("backbone.") for key in state if key.startswith("backbone.")}
    strange = sorted(name for name in backbone if not resnet.is_known(name))
    if resnet.dialect(backbone) != "torchvision" or "bn1.running_mean" not in backbone or strange:
        what = f", with {strange[0]}" if strange else ""
        raise CheckpointError(f"other projects' models have a plain ResNet of batch norms; this one's is another{what}")
    if not any(key.startswith("decoder.layers.") for key in state):
        raise CheckpointError("other projects have no encoder-only model")
    return state


def _rename(state: State, table: NameTable) -> State:
    try:
        return table.to_theirs(state)
    except KeyError as error:
        raise CheckpointError(f"the other project's models have nothing like {error.args[0]}") from error


def _with_masks(state: State) -> State:
    """A model with masks has the detector below ``detr.``."""
    masks = ("mask_head.", "bbox_attention.")
    if not any(key.startswith(masks) for key in state):
        return state
    return {key if key.startswith(masks) else f"detr.{key}": value for key, value in state.items()}


def _at_category_ids(state: State, names: Sequence[str], no_object: bool) -> State:
    """COCO's contiguous classes at their category ids; the ids in between are never called."""
    ids = {name: index for index, name in coco_classes.CATEGORIES.items()}
    if tuple(names) not in coco_classes.CONTIGUOUS.values():
        raise CheckpointError("--coco-ids is for COCO's 80 (or, panoptic, 133) classes; the config's are others")
    rows = [ids[name] for name in names]
    count = next(logits for logits in coco_classes.BY_ID if logits > max(rows))
    if no_object:
        rows, count = [*rows, count], count + 1
    spread = {}
    for key, value in state.items():
        if _HEAD.fullmatch(key):
            wide = value.new_full((count, *value.shape[1:]), _NEVER if value.dim() == 1 else 0.0)
            # The first logit of a proposal is its objectness, whatever the classes are.
            wide[torch.tensor(range(len(value)) if key.startswith("queries.") else rows)] = value
            value = wide
        spread[key] = value
    return spread

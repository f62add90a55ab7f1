"""Format of Hugging Face's DETR and Deformable DETR, with the keys of the published files and of transformers 5.

Export uses the keys of the published files, which all versions of transformers can load.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ...errors import ArgumentError
from ...modeling import CriterionConfig, DetectorConfig
from ...version import __version__
from ...zoo.coco_classes import BY_ID
from ..files import CheckpointError
from . import official
from .backbones import HUGGING_FACE_RESNET, rename_backbone
from .base import Rule, State
from .detector import DetectorFormat, is_deformable, layer_rules, portable_state, split_projections

_STAGES = ("res2", "res3", "res4", "res5")

_ENCODER = {"norm": "self_attn_layer_norm", "ffn.norm": "final_layer_norm"}
_DECODER = {
    "self_norm": "self_attn_layer_norm",
    "cross_norm": "encoder_attn_layer_norm",
    "ffn.norm": "final_layer_norm",
}
_FFN = [{"ffn.linear1": f"{prefix}fc1", "ffn.linear2": f"{prefix}fc2"} for prefix in ("", "mlp.")]


def _attention(stack: str, native: str, foreign: str) -> list[Rule]:
    """Returns the rules of an attention layer, whose query, key and value projections are separate tensors."""
    native, foreign = f"{stack}.layers.{{i}}.{native}", f"model.{stack}.layers.{{i}}.{foreign}"
    rules = [(f"{native}.out_proj.{{w}}", f"{foreign}.{name}.{{w}}") for name in ("out_proj", "o_proj")]
    return rules + [(f"{native}.in_proj_{{w}}.{part}", f"{foreign}.{part}_proj.{{w}}") for part in "qkv"]


_COMMON: list[Rule] = [
    ("backbone.{x}", "model.backbone.conv_encoder.model.{x}"),
    ("backbone.{x}", "model.backbone.model.{x}"),
    ("query_embed.weight", "model.query_position_embeddings.weight"),
    ("tokenizer.position_embedding.row", "model.position_embedding.row_embeddings.weight"),
    ("tokenizer.position_embedding.column", "model.position_embedding.column_embeddings.weight"),
    ("tokenizer.position_embedding.row", "model.backbone.position_embedding.row_embeddings.weight"),
    ("tokenizer.position_embedding.column", "model.backbone.position_embedding.column_embeddings.weight"),
    *layer_rules("encoder", _ENCODER, "model."),
    *layer_rules("decoder", _DECODER, "model."),
    *(rule for ffn in _FFN for stack in ("encoder", "decoder") for rule in layer_rules(stack, ffn, "model.")),
    *_attention("decoder", "self_attn", "self_attn"),
]

_DEFORMABLE_DETR: list[Rule] = [
    *_COMMON,
    ("tokenizer.projections.{i}.{j}.{w}", "model.input_proj.{i}.{j}.{w}"),
    ("tokenizer.level_embed", "model.level_embed"),
    *layer_rules("encoder", {"self_attn": "self_attn"}, "model."),
    *layer_rules("decoder", {"cross_attn": "encoder_attn"}, "model."),
    *official.query_rules("model."),
    *official.head_rules(),
    # With box refinement, these are tied to the heads above, and a saved file contains one of the two keys.
    *official.head_rules("model.decoder."),
]
# The published files use the official keys of the mask head; transformers 5 uses different ones.
_CONVOLUTIONS = ("conv1", "conv2", "fpn_stages.0.refine", "fpn_stages.1.refine", "fpn_stages.2.refine")
_MASKS: list[Rule] = [
    *official.MASKS,
    ("mask_head.attention.query.{w}", "bbox_attention.q_proj.{w}"),
    ("mask_head.attention.key.{w}", "bbox_attention.k_proj.{w}"),
    *((f"mask_head.convs.{index}.0.{{w}}", f"mask_head.{name}.conv.{{w}}") for index, name in enumerate(_CONVOLUTIONS)),
    *((f"mask_head.convs.{index}.1.{{w}}", f"mask_head.{name}.norm.{{w}}") for index, name in enumerate(_CONVOLUTIONS)),
    *((f"mask_head.adapters.{index}.{{w}}", f"mask_head.fpn_stages.{index}.fpn_adapter.{{w}}") for index in range(3)),
    ("mask_head.output.{w}", "mask_head.output_conv.{w}"),
]

_DETR: list[Rule] = [
    *_COMMON,
    ("tokenizer.projections.0.0.{w}", "model.input_projection.{w}"),
    *_attention("encoder", "self_attn", "self_attn"),
    *_attention("decoder", "cross_attn", "encoder_attn"),
    ("encoder.norm.{w}", "model.encoder.layernorm.{w}"),
    ("decoder.norm.{w}", "model.decoder.layernorm.{w}"),
    ("decoder.class_heads.0.{w}", "class_labels_classifier.{w}"),
    ("decoder.box_heads.0.layers.{i}.{w}", "bbox_predictor.layers.{i}.{w}"),
    *_MASKS,
]

HUGGING_FACE = DetectorFormat(
    name="hugging-face",
    mark="model.encoder.layers.0.self_attn_layer_norm.weight",
    deformable=_DEFORMABLE_DETR,
    detr=_DETR,
    classes=BY_ID,
)


def write_hugging_face(
    folder: str | Path,
    detector: nn.Module,
    model: DetectorConfig,
    criterion: CriterionConfig,
    *,
    resnet_depth: int,
    image_size: tuple[int, int],
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes a folder for ``from_pretrained`` of transformers: weights, and configs of the model and image processor.

    Args:
        folder: output folder, created if needed.
        detector: detector with a ResNet backbone and batch norm.
        model: configuration of the detector.
        criterion: configuration of the criterion, for training in transformers.
        resnet_depth: number of layers of the ResNet: 18, 34, 50 or 101.
        image_size: length of the shortest edge after resizing, and maximum length of the longest, in pixels.
        pixel_mean, pixel_std: mean and standard deviation per channel, in [0, 255].
        class_names: names of the classes, if available.

    Raises:
        ArgumentError: for a value in ``model`` that transformers does not support.
        CheckpointError: if transformers does not support the model.
    """
    from safetensors.torch import save_file

    state = portable_state(detector)
    backbone = _backbone_config(detector, state, resnet_depth, model)
    deformable = is_deformable(state)
    labels = class_names or [f"LABEL_{index}" for index in range(model.num_classes)]
    config = {
        "backbone_config": backbone,
        **_common_config(model, criterion),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        **(_deformable_config(model, criterion) if deformable else _detr_config(model, criterion)),
    }
    processor = {
        "image_processor_type": "DeformableDetrImageProcessor" if deformable else "DetrImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": image_size[0], "longest_edge": image_size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in pixel_mean],
        "image_std": [value / 255 for value in pixel_std],
        "do_pad": True,
    }
    if backbone["model_type"] == "resnet":
        state = rename_backbone(state, HUGGING_FACE_RESNET)
    state = HUGGING_FACE.export_state(split_projections(state))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors does not store tensors that share memory.
    tensors = {key: value.detach().clone().contiguous() for key, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "projects_deformable_detr": __version__})
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _common_config(model: DetectorConfig, criterion: CriterionConfig) -> dict[str, object]:
    costs = {"class_cost": criterion.cost_class, "bbox_cost": criterion.cost_bbox, "giou_cost": criterion.cost_giou}
    return {
        "num_queries": model.num_queries,
        "d_model": model.d_model,
        "encoder_layers": model.encoder_layers,
        "decoder_layers": model.decoder_layers,
        "encoder_attention_heads": model.num_heads,
        "decoder_attention_heads": model.num_heads,
        "encoder_ffn_dim": model.dim_feedforward,
        "decoder_ffn_dim": model.dim_feedforward,
        "activation_function": model.activation,
        "dropout": model.dropout,
        "position_embedding_type": model.position_embedding,
        # transformers accepts only integers; its defaults apply to other costs.
        **{name: int(cost) for name, cost in costs.items() if cost == int(cost)},
    }


def _deformable_config(model: DetectorConfig, criterion: CriterionConfig) -> dict[str, object]:
    if model.mask_head:
        raise ArgumentError("mask_head", "must be False: transformers does not support Deformable DETR with masks")
    if not model.multi_scale_attention:
        raise ArgumentError("multi_scale_attention", "must be True: transformers only supports multi-scale attention")
    return {
        "architectures": ["DeformableDetrForObjectDetection"],
        "model_type": "deformable_detr",
        "auxiliary_loss": criterion.deep_supervision,
        "num_feature_levels": model.num_levels,
        "encoder_n_points": model.encoder_points,
        "decoder_n_points": model.decoder_points,
        "with_box_refine": model.box_refine,
        "two_stage": model.two_stage,
        "two_stage_num_proposals": model.num_queries,
        "focal_alpha": criterion.focal_alpha,
    }


def _detr_config(model: DetectorConfig, criterion: CriterionConfig) -> dict[str, object]:
    if model.pre_norm:
        raise ArgumentError("pre_norm", "must be False: transformers does not support DETR with pre-norm")
    if model.position_embedding == "learned" and model.position_embedding_size != 50:
        raise ArgumentError(
            "position_embedding_size", f"must be 50, as in transformers, got {model.position_embedding_size}"
        )
    if model.class_loss != "softmax":
        raise ArgumentError("class_loss", f"must be softmax, as in DETR in transformers, got {model.class_loss}")
    return {
        "architectures": ["DetrForSegmentation" if model.mask_head else "DetrForObjectDetection"],
        "model_type": "detr",
        # With True, transformers 5.23 passes the normalized output of each decoder layer to the next, unlike DETR.
        "auxiliary_loss": False,
        "eos_coefficient": criterion.no_object_weight,
    }


def _backbone_config(detector: nn.Module, state: State, depth: int, model: DetectorConfig) -> dict[str, object]:
    """Returns ``backbone_config`` for the ResNet in a portable state."""
    stem, width = (len(state[f"backbone.{name}.weight"]) for name in ("conv1", "layer1.0.conv1"))
    features = _STAGES if model.mask_head else model.in_features  # the mask head also uses higher resolutions
    if not _is_dilated(detector):
        bottleneck = "backbone.layer1.0.conv3.weight" in state
        blocks = [re.match(r"backbone\.layer(\d)\.\d+\.conv1\.", key) for key in state]
        return {
            "model_type": "resnet",
            "layer_type": "bottleneck" if bottleneck else "basic",
            "depths": [sum(block is not None and block[1] == stage for block in blocks) for stage in "1234"],
            "embedding_size": stem,
            "hidden_sizes": [width * (4 if bottleneck else 1) * 2**stage for stage in range(4)],
            "downsample_in_bottleneck": False,  # strides are in the 3x3, as in torchvision
            "out_features": [f"stage{_STAGES.index(name) + 1}" for name in features],
        }
    # transformers supports dilation only in timm's ResNets, which have standard widths.
    if (stem, width) != (64, 64):
        raise CheckpointError(
            f"export of a dilated ResNet requires 64 channels in the stem and in res2, got {stem} and {width}"
        )
    return {
        "model_type": "timm_backbone",
        "backbone": f"resnet{depth}",
        "num_channels": 3,
        "features_only": True,
        "use_pretrained_backbone": False,
        "out_indices": [_STAGES.index(name) + 1 for name in features],
        "output_stride": 16,
    }


def _is_dilated(detector: nn.Module) -> bool:
    return any(
        isinstance(module, nn.Conv2d) and module.dilation == (2, 2) and re.search(r"\.(layer4|res5)\.", name)
        for name, module in detector.named_modules()
    )

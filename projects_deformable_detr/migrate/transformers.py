"""Options of transformers' ``DetrConfig``, ``DeformableDetrConfig`` and of the image processors beside them.

The names that have an equal of ours are those that `checkpoint.hf_config` writes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import hf_config
from ..errors import UserError
from .key_value import parse
from .rows import NOT_THERE, Change, Preset, Reading, Row, Source, Theirs, changed, fixed, none, read_with, same

_D = "MODEL.DETR"
_CLASSES = "classes follow the data set, and take over theirs by name (docs/checkpoints.md)"
_START = "initial weights are those of the papers"
_DROPOUT = "`DROPOUT` is here, as in the official code, also within attention and the feed-forward network"
_PROCESSOR = "preprocessor."


def _backbone(value: Any, theirs: Theirs) -> Mapping[str, Any]:
    deformable, masks = theirs.model == "deformable_detr", theirs["architectures"] == ["DetrForSegmentation"]
    single = not deformable or theirs["num_feature_levels"] == 1
    default = {
        "model_type": "timm_backbone",
        "backbone": theirs["backbone"],
        "out_indices": [4] if single else [2, 3, 4],
        "output_stride": 16 if theirs["dilation"] else 32,
    }
    ours = hf_config.resnet_of(value or default)
    features = ["res5"] if single else ours.pop("OUT_FEATURES")
    ours["OUT_FEATURES"] = ["res2", "res3", "res4", "res5"] if masks else features
    resnets = {f"MODEL.RESNETS.{key}": item for key, item in ours.items()}
    return resnets | {f"{_D}.IN_FEATURES": features, "MODEL.WEIGHTS": f"torchvision://resnet{ours['DEPTH']}"}


def _queries(value: int, theirs: Theirs) -> Mapping[str, Any]:
    return {} if theirs.get("two_stage") else {f"{_D}.NUM_OBJECT_QUERIES": value}


def _proposals(value: int, theirs: Theirs) -> Mapping[str, Any]:
    return {f"{_D}.NUM_OBJECT_QUERIES": value} if theirs["two_stage"] else {}


def _size(value: Mapping[str, int], _: Theirs) -> Mapping[str, Any]:
    if not {"shortest_edge", "longest_edge"} <= value.keys():
        raise UserError(f"preprocessor.size {value}: here images keep their proportions, by two edges' lengths")
    return {"INPUT.MIN_SIZE_TEST": value["shortest_edge"], "INPUT.MAX_SIZE_TEST": value["longest_edge"]}


def _times_255(key: str) -> Change:
    return Change("times 255", lambda value, _: {key: [round(255 * item, 3) for item in value]})


def _masks(value: Any, _: Theirs) -> Mapping[str, Any]:
    return {"MODEL.MASK_ON": value == ["DetrForSegmentation"]}


# Of both models, by name; DETR's, Deformable DETR's.
_DEFAULTS: dict[str, tuple[Any, Any]] = {
    "d_model": (256, 256),
    "encoder_layers": (6, 6),
    "decoder_layers": (6, 6),
    "encoder_attention_heads": (8, 8),
    "decoder_attention_heads": (8, 8),
    "encoder_ffn_dim": (2048, 1024),
    "decoder_ffn_dim": (2048, 1024),
    "activation_function": ("relu", "relu"),
    "dropout": (0.1, 0.1),
    "position_embedding_type": ("sine", "sine"),
    "auxiliary_loss": (False, False),
    "num_feature_levels": (NOT_THERE, 4),
    "encoder_n_points": (NOT_THERE, 4),
    "decoder_n_points": (NOT_THERE, 4),
    "with_box_refine": (NOT_THERE, False),
    "two_stage": (NOT_THERE, False),
    "focal_alpha": (NOT_THERE, 0.25),
    "class_cost": (1, 1),
    "bbox_cost": (5, 5),
    "giou_cost": (2, 2),
}
_NOTES = {
    "auxiliary_loss": "True makes their DETR's decoder (5.23) normalise between layers: another model than ours",
    "class_cost": "official Deformable DETR: 2",
}
_KEYS = hf_config.NAMES | hf_config.DEFORMABLE_NAMES | hf_config.COSTS


def _shared() -> tuple[Row, ...]:
    return tuple(
        same(name, f"{_D}.{_KEYS[name]}", detr=detr, deformable=deformable, note=_NOTES.get(name, ""))
        for name, (detr, deformable) in _DEFAULTS.items()
    )


ROWS: tuple[Row, ...] = (
    changed(
        "architectures",
        ("MODEL.MASK_ON",),
        Change("`DetrForSegmentation` → `True`", _masks),
        detr=["DetrForObjectDetection"],
        deformable=["DeformableDetrForObjectDetection"],
    ),
    changed(
        "backbone_config",
        (
            "MODEL.RESNETS.DEPTH",
            "MODEL.RESNETS.OUT_FEATURES",
            "MODEL.RESNETS.RES5_DILATION",
            "MODEL.RESNETS.STEM_OUT_CHANNELS",
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            "MODEL.DETR.IN_FEATURES",
            "MODEL.WEIGHTS",
        ),
        Change("its depths, features and stride", _backbone),
        both=None,
        note="ResNet-18, 34, 50, 101, theirs or timm's",
    ),
    read_with("backbone", "backbone_config", "MODEL.RESNETS.DEPTH", both="resnet50"),
    read_with("dilation", "backbone_config", "MODEL.RESNETS.RES5_DILATION", both=False),
    none("use_timm_backbone", "one ResNet stands for both here", both=True),
    none("use_pretrained_backbone", "`MODEL.WEIGHTS` names them", both=True),
    fixed("backbone_kwargs", "`backbone_config` says it in files of transformers 5", both=None),
    fixed("num_channels", "", both=3),
    changed(
        "num_queries",
        (f"{_D}.{hf_config.NAMES['num_queries']}",),
        Change("the same, unless `two_stage`", _queries),
        detr=100,
        deformable=300,
    ),
    changed(
        "two_stage_num_proposals",
        (f"{_D}.{hf_config.DEFORMABLE_NAMES['two_stage_num_proposals']}",),
        Change("the same, if `two_stage`", _proposals),
        deformable=300,
    ),
    *_shared(),
    same("", f"{_D}.NUM_FEATURE_LEVELS", detr=1, note="DETR's one level"),
    same("", f"{_D}.CLASS_WEIGHT", both=1.0, note="a constant in both; official Deformable DETR: 2"),
    same("bbox_loss_coefficient", f"{_D}.L1_WEIGHT", both=5),
    same("giou_loss_coefficient", f"{_D}.GIOU_WEIGHT", both=2),
    same("mask_loss_coefficient", f"{_D}.MASKS.MASK_WEIGHT", both=1),
    same("dice_loss_coefficient", f"{_D}.MASKS.DICE_WEIGHT", both=1),
    same("eos_coefficient", f"{_D}.{hf_config.DETR_NAMES['eos_coefficient']}", detr=0.1),
    none("eos_coefficient", "focal loss has no such class; their code does not read it there", deformable=0.1),
    none("attention_dropout", _DROPOUT, both=0.0),
    none("activation_dropout", _DROPOUT, both=0.0),
    fixed("encoder_layerdrop", "", both=0.0),
    fixed("decoder_layerdrop", "", both=0.0),
    none("init_std", _START, both=0.02),
    none("init_xavier_std", _START, both=1.0),
    none("return_intermediate", "every layer's predictions are there", deformable=True),
    none("disable_custom_kernels", "the operator takes the kernel that there is", deformable=False),
    none("max_position_embeddings", "their code does not read it", deformable=1024),
    none("tie_word_embeddings", "heads are shared where `WITH_BOX_REFINE` is `False`", deformable=True),
    none("is_encoder_decoder", "", both=True),
    none("id2label", _CLASSES, both=None),
    none("label2id", _CLASSES, both=None),
    none("num_labels", _CLASSES, both=2),
    changed(
        f"{_PROCESSOR}size",
        ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),
        Change("its two edges", _size),
        both={"shortest_edge": 800, "longest_edge": 1333},
        note="training's sizes are `INPUT.MIN_SIZE_TRAIN`; they have none",
    ),
    changed(
        f"{_PROCESSOR}image_mean", ("MODEL.PIXEL_MEAN",), _times_255("MODEL.PIXEL_MEAN"), both=[0.485, 0.456, 0.406]
    ),
    changed(f"{_PROCESSOR}image_std", ("MODEL.PIXEL_STD",), _times_255("MODEL.PIXEL_STD"), both=[0.229, 0.224, 0.225]),
    fixed(f"{_PROCESSOR}rescale_factor", "", both=1 / 255),
    fixed(f"{_PROCESSOR}do_resize", "", both=True),
    fixed(f"{_PROCESSOR}do_rescale", "", both=True),
    fixed(f"{_PROCESSOR}do_normalize", "", both=True),
    fixed(f"{_PROCESSOR}do_pad", "", both=True),
    none(f"{_PROCESSOR}*", "its input is what the engines' mappers make", both=None),
)
# Keys of every config there, of 4 and 5, and what older files of these two models have besides.
_EVERY_CONFIG = (
    "_name_or_path model_type torch_dtype dtype transformers_version classifier_dropout scale_embedding "
    "num_hidden_layers hidden_size num_attention_heads add_cross_attention bad_words_ids begin_suppress_tokens "
    "bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty "
    "do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty "
    "finetuning_task forced_bos_token_id forced_eos_token_id is_decoder length_penalty max_length min_length "
    "no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states "
    "output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty "
    "return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature "
    "tf_legacy_loss tokenizer_class top_k top_p torchscript typical_p use_bfloat16 use_cache"
)


def read(source: Source, path: str) -> Reading:
    """``config.json``, or the folder that it lies in; ``preprocessor_config.json`` beside it is read too."""
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    values = _json(file)
    model = str(values.get("model_type"))
    if model not in source.presets:
        raise UserError(f"{file}: model_type {model!r} is none of {', '.join(source.presets)}")
    beside = file.with_name("preprocessor_config.json")
    if beside.is_file():
        values |= {f"{_PROCESSOR}{name}": value for name, value in _json(beside).items()}
    return Reading({name: value for name, value in values.items() if _tells(source, model, name, value)}, model)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no config that can be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: no config, which would be names and values")
    return content


def _tells(source: Source, model: str, name: str, value: Any) -> bool:
    """Whether a value of a file is more than a default, or than what every file has."""
    rows = [row for row in source.rows if row.option and row.names(name)]
    if name in source.without_effect or name in ("id2label", "label2id", "num_labels", "is_encoder_decoder"):
        return False
    if rows and rows[0].option.endswith(".*"):  # of the processor, which says in every file all that it does
        return False
    defaults = [row.default(model) for row in rows]
    return value not in defaults and not (value is None and (NOT_THERE in defaults or None in defaults))


TRANSFORMERS = Source(
    "transformers",
    ROWS,
    {"detr": Preset("detr"), "deformable_detr": Preset("deformable_detr")},
    parse,
    read,
    without_effect=frozenset(_EVERY_CONFIG.split()),
)

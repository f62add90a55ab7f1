"""The tables: every key is one of ours, every option of theirs has a row, every change gives only the keys it names."""

import dataclasses
import inspect

import pytest

from projects_deformable_detr import get_cfg
from projects_deformable_detr.checkpoint import hf_config
from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.engine import is_installed
from projects_deformable_detr.migrate import SOURCES
from projects_deformable_detr.migrate.rows import MODELS, NOT_THERE, Theirs

ROWS = [(name, row) for name, source in SOURCES.items() for row in source.rows]
ENGINES = ["standalone", *(["detectron2"] if is_installed("detectron2") else [])]
# As main.py of both repositories has them, written down by hand.
OFFICIAL = {
    "detr": """lr lr_backbone batch_size weight_decay epochs lr_drop clip_max_norm frozen_weights backbone dilation
        position_embedding enc_layers dec_layers dim_feedforward hidden_dim dropout nheads num_queries pre_norm masks
        aux_loss set_cost_class set_cost_bbox set_cost_giou mask_loss_coef dice_loss_coef bbox_loss_coef giou_loss_coef
        eos_coef dataset_file coco_path coco_panoptic_path remove_difficult output_dir device seed resume start_epoch
        eval num_workers world_size dist_url""",
    "deformable_detr": """lr lr_backbone_names lr_backbone lr_linear_proj_names lr_linear_proj_mult batch_size
        weight_decay epochs lr_drop lr_drop_epochs clip_max_norm sgd with_box_refine two_stage frozen_weights backbone
        dilation position_embedding position_embedding_scale num_feature_levels enc_layers dec_layers dim_feedforward
        hidden_dim dropout nheads num_queries dec_n_points enc_n_points masks aux_loss set_cost_class set_cost_bbox
        set_cost_giou mask_loss_coef dice_loss_coef cls_loss_coef bbox_loss_coef giou_loss_coef focal_alpha dataset_file
        coco_path coco_panoptic_path remove_difficult output_dir device seed resume start_epoch eval num_workers
        cache_mode""",
}


def leaves(node, prefix=""):
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_key_is_ours(engine):
    known = set(leaves(get_cfg(engine)))
    flags = {text for action in argument_parser()._actions for text in action.option_strings}
    wrong = [(name, row.option, key) for name, row in ROWS for key in row.keys if key not in known | flags]
    assert wrong == []


def test_a_row_without_a_key_says_why():
    silent = [(name, row.option) for name, row in ROWS if not (row.keys or row.note or row.fixed)]
    assert set(silent) <= {("transformers", "is_encoder_decoder")} | {
        ("mmdetection", f"model.{stack}.layer_cfg.ffn_cfg.act_cfg.inplace") for stack in ("encoder", "decoder")
    }


def test_every_option_is_of_a_model():
    """One without a default in either would be told to be of the other."""
    assert [(name, row.option) for name, row in ROWS if row.detr is NOT_THERE and row.deformable is NOT_THERE] == []


def test_a_family_is_named_by_its_own_name_too():
    row = SOURCES["mmdetection"].row("custom_hooks", "detr")
    assert row is not None and row.option == "custom_hooks.*" and not row.names("custom_hooks_of_others")


def test_no_option_has_two_rows_in_one_model():
    for model in MODELS:
        seen = [(name, row.option) for name, row in ROWS if row.option and row.default(model) is not NOT_THERE]
        assert len(seen) == len(set(seen))


@pytest.mark.parametrize("name", SOURCES)
def test_changes_give_the_keys_that_they_name(name):
    source = SOURCES[name]
    for preset in source.presets.values():
        defaults = {row.option: row.default(preset.model) for row in source.rows if row.option}
        values = {key: value for key, value in defaults.items() if value is not NOT_THERE} | dict(preset.values)
        theirs = Theirs(values, preset.model, given=frozenset(values))
        for row in source.rows:
            assert row.ours(theirs).keys() <= set(row.keys), row.option


def test_presets_name_options():
    for source in SOURCES.values():
        for preset in source.presets.values():
            for option in preset.values:
                row = source.row(option, preset.model)
                assert row is not None and row.default(preset.model) is not NOT_THERE, option


@pytest.mark.parametrize("model", MODELS)
def test_official_options_are_all_there(model):
    rows = [row.option for row in SOURCES["official"].rows if row.option and row.default(model) is not NOT_THERE]
    assert sorted(rows) == sorted(OFFICIAL[model].split())


@pytest.mark.parametrize(("model", "name"), [("detr", "DetrConfig"), ("deformable_detr", "DeformableDetrConfig")])
def test_transformers_options_and_defaults_are_those_installed(model, name):
    transformers = pytest.importorskip("transformers")
    fields = {field.name: field for field in dataclasses.fields(getattr(transformers, name))}
    every = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    source = SOURCES["transformers"]
    for option in fields.keys() - every:
        row = source.row(option, model)
        assert row is not None and row.default(model) is not NOT_THERE, option
        if option != "num_labels":
            assert row.default(model) == fields[option].default, option
    saved = getattr(transformers, name)().to_dict()
    unknown = [key for key in saved if source.row(key, model) is None and key not in source.without_effect]
    assert unknown == []


def test_transformers_processor_options_have_rows():
    transformers = pytest.importorskip("transformers")
    source = SOURCES["transformers"]
    for key in transformers.DetrImageProcessor().to_dict():
        assert source.row(f"preprocessor.{key}", "detr") is not None, key


def test_transformers_names_are_those_that_export_writes():
    """One table says them for both ways."""
    rows = {row.option: row for row in SOURCES["transformers"].rows}
    for names in (hf_config.NAMES, hf_config.DEFORMABLE_NAMES, hf_config.DETR_NAMES, hf_config.COSTS):
        for name, key in names.items():
            assert rows[name].keys == (f"MODEL.DETR.{key}",) or name == "eos_coefficient"
    assert "MODEL.DETR.DIM_FEEDFORWARD" not in inspect.getsource(inspect.getmodule(SOURCES["transformers"].read))

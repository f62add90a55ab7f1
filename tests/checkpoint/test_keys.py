"""The official repository's names, made here from ours by the inverse of what the loader knows.

Hugging Face's names are tested with its models in tests/modeling/test_transformers_parity.py.
"""

import re

import pytest
import torch
import torchvision

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import LoadOptions, load_weights, recognise, to_ours

_LAYER_PARTS = {
    "encoder": {"self_attn": "self_attn", "norm": "norm1", "ffn.norm": "norm2"},
    "decoder": {"self_attn": "self_attn", "self_norm": "norm2", "cross_attn": "cross_attn", "cross_norm": "norm1"}
    | {"ffn.norm": "norm3"},
}
_QUERY_PARTS = {
    "reference_points": "reference_points",
    "output": "enc_output",
    "output_norm": "enc_output_norm",
    "query": "pos_trans",
    "query_norm": "pos_trans_norm",
}
_HEADS = {"class": "class_embed", "box": "bbox_embed"}


def official_name(key, layers):
    """The name that github.com/fundamentalvision/Deformable-DETR gives to a parameter of ours."""
    if key.startswith("backbone."):
        return f"backbone.0.body.{key.removeprefix('backbone.')}"
    if key == "tokenizer.level_embed":
        return "transformer.level_embed"
    if match := re.fullmatch(r"tokenizer\.projections\.(.+)", key):
        return f"input_proj.{match[1]}"
    if match := re.fullmatch(r"decoder\.(class|box)_heads\.(.+)", key):
        return f"{_HEADS[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"queries\.(class|box)_head\.(.+)", key):
        return f"{_HEADS[match[1]]}.{layers}.{match[2]}"
    if match := re.fullmatch(r"queries\.(\w+)\.(weight|bias)", key):
        return f"transformer.{_QUERY_PARTS[match[1]]}.{match[2]}"
    match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", key)
    stack, index, rest = match.groups()
    if linear := re.fullmatch(r"ffn\.(linear[12]\.\w+)", rest):
        return f"transformer.{stack}.layers.{index}.{linear[1]}"
    for ours, theirs in sorted(_LAYER_PARTS[stack].items(), key=lambda item: -len(item[0])):
        if rest.startswith(f"{ours}."):
            return f"transformer.{stack}.layers.{index}.{theirs}.{rest.removeprefix(f'{ours}.')}"
    raise AssertionError(key)


def official_state(detector, refine):
    state = {key: value.clone() for key, value in detector.state_dict().items()}
    layers = len(detector.decoder.layers)
    position, content = state.pop("queries.position", None), state.pop("queries.content", None)
    official = {official_name(key, layers): value for key, value in state.items()}
    if position is not None:
        official["query_embed.weight"] = torch.cat((position, content), dim=1)
    heads = {key: value for key, value in official.items() if key.startswith(("class_embed.", "bbox_embed."))}
    if refine:  # the decoder holds the same heads again
        official |= {f"transformer.decoder.{key}": value for key, value in heads.items() if key.startswith("bbox")}
    else:  # one head, stored once for every layer
        for key, value in heads.items():
            stem, _, tail = key.split(".", 2)
            official |= {f"{stem}.{index}.{tail}": value for index in range(layers)}
    return official


@pytest.mark.parametrize("variant", ["single_scale", "single_scale_dc5", "multi_scale", "box_refine", "two_stage"])
def test_official_weights_load(make_cfg, shake_all, tmp_path, variant):
    cfg = make_cfg(variant)
    source, target = shake_all(build_detector(cfg)), build_detector(cfg)
    state = official_state(source, cfg.MODEL.DETR.WITH_BOX_REFINE)
    assert recognise(state) == "official"
    assert not set(state) & set(source.state_dict())
    torch.save({"model": state, "epoch": 49}, tmp_path / "official.pth")
    assert load_weights(target, tmp_path / "official.pth").kind == "official"
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


@pytest.fixture
def shake_all():
    def shake(detector):
        """Every tensor gets values of its own, so that no two can be mistaken for each other."""
        for value in detector.state_dict().values():
            value.copy_(torch.randn(value.shape))
        return detector

    return shake


def test_a_key_that_no_rule_knows_is_kept_and_so_reported(make_cfg, tmp_path):
    cfg = make_cfg()
    detector = build_detector(cfg)
    state = official_state(detector, refine=False) | {"transformer.decoder.extra.weight": torch.zeros(1)}
    assert "transformer.decoder.extra.weight" in to_ours(state, "official")
    torch.save(state, tmp_path / "official.pth")
    report = load_weights(detector, tmp_path / "official.pth", LoadOptions(allow_partial=True))
    assert report.unexpected == ("transformer.decoder.extra.weight",)


def test_recognition(make_cfg):
    detector = build_detector(make_cfg())
    state = detector.state_dict()
    assert recognise(state) == "ours"
    assert recognise({f"detector.{key}": value for key, value in state.items()}) == "ours"
    assert recognise(torchvision.models.resnet18(weights=None).state_dict()) == "resnet"
    assert recognise({"weight": 0}) == "unknown"
    with pytest.raises(ValueError, match="'unknown'"):
        to_ours({}, "unknown")

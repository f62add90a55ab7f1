"""The mask head, its losses and its gradients beside transformers' DetrForSegmentation, with the same weights."""

import pytest
import torch
from torch import nn

from projects_deformable_detr import build_criterion, build_detector, get_cfg
from projects_deformable_detr.modeling import Targets, batch_images

transformers = pytest.importorskip("transformers", reason="compares with transformers")

STAGES = {"res2": 16, "res3": 32, "res4": 48, "res5": 64}
_CONVS = ["conv1", "conv2", *(f"fpn_stages.{i}.refine" for i in range(3))]
# Ours: theirs, of one layer.
_ENCODER = {"norm": "self_attn_layer_norm", "ffn.norm": "final_layer_norm"}
_DECODER = {
    "self_norm": "self_attn_layer_norm",
    "cross_norm": "encoder_attn_layer_norm",
    "ffn.norm": "final_layer_norm",
}
_FFN = {"ffn.linear1": "mlp.fc1", "ffn.linear2": "mlp.fc2"}


class Backbone(nn.Module):
    """Theirs, with our protocol."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        maps = self.encoder(images, torch.ones_like(images[:, 0]))
        return {name: level[0] for name, level in zip(STAGES, maps, strict=True)}

    def output_shape(self):
        from types import SimpleNamespace

        return {name: SimpleNamespace(channels=width) for name, width in STAGES.items()}


def make_theirs():
    backbone = transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=list(STAGES.values()),
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    # With auxiliary losses, its decoder in 5.23 gives each layer the normed output of the one before, as DETR does not.
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, backbone=None, use_pretrained_backbone=False,
        d_model=256, encoder_layers=2, decoder_layers=2, encoder_attention_heads=8, decoder_attention_heads=8,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=7, num_labels=5, dropout=0.0, auxiliary_loss=False,
    )  # fmt: skip
    theirs = transformers.DetrForSegmentation(config)
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return theirs.train()  # no dropout, and frozen norms: the mode changes nothing


def renamed(theirs):
    """Their tensors by our names, joined where ours stack several; the backbone is left out."""
    names = {"queries.position": ["detr.model.query_position_embeddings.weight"]}

    def add(ours, *parts):
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = [f"{part}.{kind}" for part in parts]

    def attention(ours, part):
        for kind in ("weight", "bias"):
            names[f"{ours}.in_proj_{kind}"] = [f"{part}.{name}_proj.{kind}" for name in "qkv"]
        add(f"{ours}.out_proj", f"{part}.o_proj")

    add("tokenizer.projections.0.0", "detr.model.input_projection")
    add("decoder.norm", "detr.model.decoder.layernorm")
    add("decoder.class_heads.0", "detr.class_labels_classifier")
    for i in range(3):
        add(f"decoder.box_heads.0.layers.{i}", f"detr.bbox_predictor.layers.{i}")
    for i in range(2):
        for stack, parts in (("encoder", _ENCODER | _FFN), ("decoder", _DECODER | _FFN)):
            for ours, part in parts.items():
                add(f"{stack}.layers.{i}.{ours}", f"detr.model.{stack}.layers.{i}.{part}")
            attention(f"{stack}.layers.{i}.self_attn", f"detr.model.{stack}.layers.{i}.self_attn")
        attention(f"decoder.layers.{i}.cross_attn", f"detr.model.decoder.layers.{i}.encoder_attn")
    for i, conv in enumerate(_CONVS):
        add(f"mask_head.convs.{i}.0", f"mask_head.{conv}.conv")
        add(f"mask_head.convs.{i}.1", f"mask_head.{conv}.norm")
    for i in range(3):
        add(f"mask_head.adapters.{i}", f"mask_head.fpn_stages.{i}.fpn_adapter")
    add("mask_head.output", "mask_head.output_conv")
    add("mask_head.attention.query", "bbox_attention.q_proj")
    add("mask_head.attention.key", "bbox_attention.k_proj")
    return {ours: torch.cat([theirs[name] for name in parts]) for ours, parts in names.items()}


def make_ours(theirs):
    cfg = get_cfg("standalone")
    cfg.MODEL.META_ARCHITECTURE = "DETR"
    cfg.MODEL.MASK_ON = True
    detr = cfg.MODEL.DETR
    detr.NUM_CLASSES, detr.NUM_OBJECT_QUERIES, detr.IN_FEATURES, detr.NUM_FEATURE_LEVELS = 5, 7, ["res5"], 1
    detr.HIDDEN_DIM, detr.NHEADS, detr.DIM_FEEDFORWARD = 256, 8, 64
    detr.ENC_LAYERS, detr.DEC_LAYERS, detr.DROPOUT = 2, 2, 0.0
    detr.COST_CLASS, detr.CLASS_WEIGHT, detr.DEEP_SUPERVISION = 1.0, 1.0, False
    ours = build_detector(cfg, Backbone(theirs.detr.model.backbone))
    result = ours.load_state_dict(renamed(theirs.state_dict()), strict=False)
    assert all(name.startswith("backbone.") for name in result.missing_keys) and not result.unexpected_keys
    return ours.train(), build_criterion(cfg)


def make_inputs():
    images, mask = batch_images([torch.randn(3, 96, 130), torch.randn(3, 128, 70)])
    targets = []
    for size, count in (((96, 130), 3), ((128, 70), 2)):
        boxes = torch.cat((torch.rand(count, 2) * 0.4 + 0.3, torch.rand(count, 2) * 0.3 + 0.1), dim=1)
        targets.append(Targets(torch.randint(0, 5, (count,)), boxes, torch.rand(count, *size) > 0.6))
    return images, mask, targets


def close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_masks_losses_and_gradients():
    theirs = make_theirs()
    ours, criterion = make_ours(theirs)
    images, mask, targets = make_inputs()
    labels = [{"class_labels": t.labels, "boxes": t.boxes, "masks": t.masks.float()} for t in targets]
    expected = theirs(pixel_values=images, pixel_mask=(~mask).long(), labels=labels)
    predictions = ours(images, mask)
    close(predictions.logits[-1], expected.logits, 1e-4)
    close(predictions.boxes[-1], expected.pred_boxes, 1e-4)
    masks = predictions.masks.all()
    assert masks.shape == (2, 7, 32, 33) and masks.std() > 0.1
    close(masks, expected.pred_masks, 1e-4)

    losses = criterion(predictions, targets)
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0, "loss_mask": 1.0, "loss_dice": 1.0}
    total = {}
    for name, value in expected.loss_dict.items():
        stem = "_".join(name.split("_")[:2])
        if stem in weights:
            total[name] = weights[stem] * value
            close(losses[name], total[name], 1e-4)
    assert losses.keys() == total.keys() and {"loss_mask", "loss_dice"} <= losses.keys()

    parameters = {name: p for name, p in ours.named_parameters() if not name.startswith("backbone.")}
    gradients = torch.autograd.grad(sum(losses.values()), list(parameters.values()))
    sum(total.values()).backward()
    wanted = renamed({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    for name, gradient in zip(parameters, gradients, strict=True):
        worst = (gradient - wanted[name]).abs().max() / wanted[name].abs().max().clamp(min=1e-6)
        assert worst < 1e-3, f"{name}: {worst}"

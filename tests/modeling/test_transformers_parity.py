"""Equal outputs, losses and gradients of transformers' DETR and Deformable DETR and this project's models."""

import pytest
import torch

from projects_deformable_detr import build_criterion, build_detector, get_cfg
from projects_deformable_detr.checkpoint import import_state, load_weights
from projects_deformable_detr.modeling import Targets, batch_images

transformers = pytest.importorskip("transformers", reason="transformers is the independent implementation")

CLASSES, QUERIES = 7, 20
VARIANTS = {
    "multi_scale": {},
    "box_refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
    "single_scale": {"num_feature_levels": 1},
    "single_scale_refine": {"num_feature_levels": 1, "with_box_refine": True},
    "one_point": {"encoder_n_points": 1, "decoder_n_points": 1},
    "detr": {},
    "detr_learned": {"position_embedding_type": "learned"},
    "detr_masks": {"d_model": 256},
}
COMMON = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "dropout": 0.0,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
}


def make_hf_model(variant):
    options = VARIANTS[variant]
    detr = variant.startswith("detr")
    features = ["stage4"] if detr or options.get("num_feature_levels") == 1 else ["stage2", "stage3", "stage4"]
    backbone = transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"] if variant == "detr_masks" else features,
    )
    if detr:
        # With auxiliary losses, its decoder in 5.23 passes the normed output of a layer to the next one, unlike DETR.
        config = transformers.DetrConfig(backbone_config=backbone, auxiliary_loss=False, **COMMON | options)
        with_masks = variant == "detr_masks"
        model = (transformers.DetrForSegmentation if with_masks else transformers.DetrForObjectDetection)(config)
    else:
        options = {"two_stage_num_proposals": QUERIES, "class_cost": 2, "auxiliary_loss": True, **options}
        config = transformers.DeformableDetrConfig(backbone_config=backbone, **COMMON | options)
        model = transformers.DeformableDetrForObjectDetection(config)
    model.requires_grad_(True)  # transformers freezes some of the backbone by name
    add_noise(model)
    return model


def add_noise(model):
    """Adds noise to all weights: the initial ones hide the effect of heads and offsets."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += (0.05 if "backbone" not in name else 0.01) * noise
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    if getattr(model.config, "two_stage", False):
        # Unlike this project, transformers may select padded tokens, which are zeroed, as proposals. Here, they have
        # the lowest scores, so that neither selects them.
        zeroed = model.model.enc_output_norm(model.model.enc_output.bias)
        model.class_embed[-1].weight.data[0] = -zeroed.detach()


def make_detector(hf_model):
    config = hf_model.config
    cfg = get_cfg("standalone")
    levels = getattr(config, "num_feature_levels", 1)
    features = ["res5"] if levels == 1 else ["res3", "res4", "res5"]
    detr = cfg.MODEL.DETR
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.OUT_FEATURES = detr.IN_FEATURES = features
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    detr.NUM_CLASSES, detr.NUM_OBJECT_QUERIES, detr.NUM_FEATURE_LEVELS = CLASSES, QUERIES, levels
    detr.HIDDEN_DIM, detr.DIM_FEEDFORWARD, detr.ENC_LAYERS, detr.DEC_LAYERS = config.d_model, 96, 2, 3
    detr.DROPOUT = 0.0
    if config.model_type == "detr":
        cfg.MODEL.META_ARCHITECTURE = "DETR"
        detr.POSITION_EMBEDDING = config.position_embedding_type
        detr.COST_CLASS = detr.CLASS_WEIGHT = 1.0
        detr.DEEP_SUPERVISION = False
        if isinstance(hf_model, transformers.DetrForSegmentation):
            cfg.MODEL.MASK_ON, cfg.MODEL.RESNETS.OUT_FEATURES = True, ["res2", "res3", "res4", "res5"]
    else:
        detr.ENC_N_POINTS, detr.DEC_N_POINTS = config.encoder_n_points, config.decoder_n_points
        detr.WITH_BOX_REFINE, detr.TWO_STAGE = config.with_box_refine, config.two_stage
    detector = build_detector(cfg)
    state = hf_model.state_dict()
    format, state = import_state(state)
    assert format.name == "hugging-face"
    detector.load_state_dict(state, strict=True)
    return detector, build_criterion(cfg)


def make_batch():
    # Seed 1 has a ReLU input that is zero up to rounding, whose sign changes a gradient by 0.3 %.
    generator = torch.Generator().manual_seed(2)
    images, mask = batch_images(
        [torch.randn(3, 160, 128, generator=generator), torch.randn(3, 96, 192, generator=generator)]
    )
    targets = []
    for count, side in ((3, (160, 128)), (5, (96, 192))):
        center = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
        size = 0.1 + 0.3 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(CLASSES, (count,), generator=generator)
        masks = torch.rand(count, *side, generator=generator) > 0.6
        targets.append(Targets(labels, torch.cat((center, size), dim=1), masks))
    return images, mask, targets


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_predictions_losses_and_gradients_agree(variant):
    hf_model = make_hf_model(variant)
    detector, criterion = make_detector(hf_model)
    images, mask, targets = make_batch()
    labels = [{"class_labels": t.labels, "boxes": t.boxes, "masks": t.masks.float()} for t in targets]
    expected = hf_model(pixel_values=images, pixel_mask=(~mask).long(), labels=labels)
    predictions = detector(images, mask)
    close(predictions.logits[-1], expected.logits, 1e-4)
    close(predictions.boxes[-1], expected.pred_boxes, 1e-4)
    for index, layer in enumerate(expected.auxiliary_outputs or ()):
        close(predictions.logits[index], layer["logits"], 1e-4)
        close(predictions.boxes[index], layer["pred_boxes"], 1e-4)
    assert (predictions.proposals is not None) == (variant == "two_stage")
    if predictions.proposals is not None:
        close(predictions.proposals[0], expected.enc_outputs_class, 1e-4)
        close(predictions.proposals[1], expected.enc_outputs_coord_logits.sigmoid(), 1e-4)
    assert (predictions.masks is not None) == (variant == "detr_masks")
    if predictions.masks is not None:
        masks = predictions.masks.all()
        assert masks.shape == (2, QUERIES, 40, 48) and masks.std() > 0.1
        close(masks, expected.pred_masks, 1e-4)

    losses = criterion(predictions, targets)
    weights = {"loss_ce": 1.0 if variant.startswith("detr") else 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    weights |= {"loss_mask": 1.0, "loss_dice": 1.0}
    total = {}
    for name, value in expected.loss_dict.items():
        stem = "_".join(name.split("_")[:2])
        if stem in weights:
            total[name] = weights[stem] * value
            close(losses[name], total[name], 1e-4)
    # transformers has no loss of proposals.
    losses = {name: value for name, value in losses.items() if not name.endswith("_enc")}
    assert losses.keys() == total.keys()
    sum(total.values()).backward()
    sum(losses.values()).backward()
    compare_gradients(detector, hf_model)


@pytest.mark.parametrize("variant", ["multi_scale", "box_refine", "two_stage", "detr"])
def test_saved_files_contain_all_heads(variant, tmp_path):
    """For tied tensors, save_pretrained keeps one of the names, not always the same."""
    hf_model = make_hf_model(variant)
    hf_model.save_pretrained(tmp_path)
    detector, _ = make_detector(hf_model)
    expected = {name: value.clone() for name, value in detector.state_dict().items()}
    for parameter in detector.parameters():
        torch.nn.init.zeros_(parameter)
    report = load_weights(detector, tmp_path / "model.safetensors")
    assert report.format == "hugging-face" and not report.missing and not report.unexpected
    for name, value in detector.state_dict().items():
        assert torch.equal(value, expected[name]), name


def compare_gradients(detector, hf_model):
    """Compares the gradient of every parameter, summed where transformers ties them (class heads with refinement)."""
    named = dict(hf_model.named_parameters(remove_duplicate=False))
    _, parameters = import_state(named)
    _, gradients = import_state({name: p.grad for name, p in named.items() if p.grad is not None})
    sums = {}
    for name, parameter in detector.named_parameters():
        if parameter.grad is None:
            assert name not in gradients or gradients[name].abs().max() == 0, name
            continue
        key = id(parameters[name])
        first, total = sums.get(key, (name, 0))
        sums[key] = (first, total + parameter.grad)
    assert len(sums) > 80
    for name, total in sums.values():
        wanted = gradients[name]
        worst = (total - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)
        assert worst < 1e-3, f"{name}: {worst}"

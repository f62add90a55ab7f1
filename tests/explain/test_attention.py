"""Recorded sampling points and attention weights equal those that the attention modules use."""

import math
import threading

import pytest
import torch
from ms_deform_attn import MSDeformAttn, ms_deform_attn

from projects_deformable_detr import build_detector
from projects_deformable_detr.errors import ArgumentError
from projects_deformable_detr.explain import input_gradients, negative_entropy, record_attention
from projects_deformable_detr.explain.attention import attention_maps, sampling_points
from projects_deformable_detr.explain.entropy import EntropyMeter

VARIANTS = (
    "single_scale",
    "single_scale_dc5",
    "multi_scale",
    "box_refine",
    "two_stage",
    "encoder_only",
    "own_level",
    "detr",
    "detr_pre_norm",
    "detr_dc5_plus",
)


@pytest.fixture
def build(make_cfg):
    """Returns ``build(variant)``, a tiny detector with noise on its parameters."""

    def build(variant, **changes):
        torch.manual_seed(0)
        detector = build_detector(make_cfg(variant, **{"NORM": "GN"} | changes)).eval()
        with torch.no_grad():
            for parameter in detector.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return detector

    return build


def padded_batch():
    torch.manual_seed(1)
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[0, 60:], mask[0, :, 90:] = True, True
    return torch.randn(2, 3, 96, 128).masked_fill(mask[:, None], 0.0), mask


def output_from_parts(call):
    """Computes the output of a module from its recomputed points or maps."""
    module, everything = call.module, slice(None)
    if isinstance(module, MSDeformAttn):
        _, _, source, shapes, starts, mask = call.args
        value = module.value_proj(source)
        value = value if mask is None else value.masked_fill(mask[..., None], 0.0)
        value = value.unflatten(-1, (module.n_heads, -1))
        return module.output_proj(ms_deform_attn(value, shapes, starts, *sampling_points(call, everything)))
    weight, bias = (part.chunk(3)[2] for part in (module.in_proj_weight, module.in_proj_bias))
    value = torch.nn.functional.linear(call.args[2], weight, bias).unflatten(-1, (module.num_heads, -1))
    attended = torch.einsum("nmqs,nsmd->nqmd", attention_maps(call, everything), value)
    return module.out_proj(attended.flatten(2))


@torch.no_grad()
def test_selections_without_queries(build):
    nothing = torch.empty(0, dtype=torch.int64)
    for changes in ({"MULTI_SCALE_ATTENTION": False}, {}):
        detector = build("encoder_only", **changes)
        with record_attention(detector) as recording:
            detector(*padded_batch())
            with pytest.raises(RuntimeError, match="one forward pass"):
                detector(*padded_batch())
        assert len(recording.of_queries(nothing, (60, 90)).weights[0]) == 0


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_points_and_weights_give_the_outputs_of_the_modules(build, variant):
    detector, batch = build(variant), padded_batch()
    before = detector(*batch)
    outputs, handles = {}, []
    for module in detector.modules():
        if isinstance(module, MSDeformAttn | torch.nn.MultiheadAttention):
            keep = outputs.setdefault(module, []).append
            handles.append(module.register_forward_hook(lambda *args, keep=keep: keep(args[-1])))
    with record_attention(detector) as recording:
        during = detector(*batch)
    for handle in handles:
        handle.remove()
    assert torch.equal(before.logits, during.logits) and torch.equal(before.boxes, during.boxes)
    layers = recording.encoder + recording.decoder
    assert len(layers) == (2 if variant == "encoder_only" else 5)
    assert len(layers[0]) == (4 if variant == "own_level" else 1)
    for calls in layers:
        for call, output in zip(calls, outputs[call_module(calls)], strict=True):
            expected = output if isinstance(output, torch.Tensor) else output[0]
            torch.testing.assert_close(output_from_parts(call), expected, rtol=1e-5, atol=1e-5)


def call_module(calls):
    assert len({call.module for call in calls}) == 1
    return calls[0].module


def hooks_of(detector):
    return [
        module
        for module in detector.modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    ]


@pytest.mark.parametrize("variant", ["two_stage", "detr"])
def test_no_hooks_remain(build, variant):
    detector = build(variant)
    with record_attention(detector):
        assert hooks_of(detector)
    assert not hooks_of(detector)
    with pytest.raises(RuntimeError, match="stopped"), record_attention(detector):
        raise RuntimeError("stopped")
    with pytest.raises(ArgumentError, match="images"), EntropyMeter(1).measuring(detector):
        detector(torch.zeros(1), torch.zeros(1))
    assert not hooks_of(detector)


@torch.no_grad()
def test_other_threads_are_not_recorded(build):
    detector, batch = build("multi_scale"), padded_batch()
    with record_attention(detector) as recording:
        thread = threading.Thread(target=lambda: detector(*batch))
        thread.start()
        thread.join()
        assert recording.queries is None and not recording.decoder[0]
        detector(*batch)
    assert len(recording.decoder[0]) == 1


@pytest.mark.parametrize("variant", ["multi_scale", "own_level"])
@torch.no_grad()
def test_tokens_and_pixels_of_a_padded_image(build, variant):
    """The reference point of a token is its center, in pixels of the image without padding."""
    detector, batch = build(variant), padded_batch()
    with record_attention(detector) as recording:
        detector(*batch)
    size, points = (700, 1000), torch.tensor([[0.31, 0.62], [0.999, 0.001]])
    rows = recording.tokens_at(points)
    assert recording.levels_of(rows).tolist() == [0, 1, 2, 3] * 2
    found = recording.of_tokens(rows.flip(0), size)
    centers = recording.tokens.centers()[0, rows.flip(0)] * torch.tensor([1000.0, 700.0])
    for references in found.references:
        torch.testing.assert_close(references, centers, rtol=1e-4, atol=0.01)
    assert not recording.tokens.padding_mask[0, rows].any()
    height, width = recording.tokens.spatial_shapes[0]
    columns, lines = (recording.tokens.valid_ratios[0, 0] * torch.tensor([width, height])).round().tolist()
    assert divmod(int(rows[0]), width) == (math.floor(0.62 * lines), math.floor(0.31 * columns))
    # The first point of head 0 on the level, from its offset in pixels of the level.
    call = recording.encoder[0][0]
    offset = call.module.sampling_offsets(call.args[0][0, rows[0]])[:2] / torch.tensor([width, height])
    moved = offset * torch.tensor([1000.0, 700.0]) / recording.tokens.valid_ratios[0, 0]
    place = found.locations[0, -1, 0, 0, 0] - found.references[0, -1]
    torch.testing.assert_close(place, moved, rtol=1e-3, atol=0.01)


@torch.no_grad()
def test_maps_of_a_padded_image_exclude_the_padding(build):
    detector, batch = build("detr"), padded_batch()
    with record_attention(detector) as recording:
        detector(*batch)
    found = recording.of_queries(torch.tensor([2, 5]), (60, 90))
    assert found.weights.shape == (3, 2, 4, 2, 3) and recording.tokens.spatial_shapes == ((3, 4),)
    torch.testing.assert_close(found.weights.sum((-2, -1)), torch.ones(3, 2, 4))
    assert recording.tokens_at(torch.tensor([[0.1, 0.9]])).tolist() == [4]


@torch.no_grad()
def test_negative_entropy(build):
    uniform, batch = build("multi_scale"), padded_batch()
    for layer in uniform.decoder.layers:
        layer.cross_attn.attention_weights.weight.zero_()
        layer.cross_attn.attention_weights.bias.zero_()
    # One point of each head has all the weight.
    uniform.decoder.layers[1].cross_attn.attention_weights.bias.view(4, 8)[:, 3] = 1e3
    with record_attention(uniform) as recording:
        uniform(*batch)
    torch.testing.assert_close(negative_entropy(recording), torch.tensor([-math.log(8), 0.0, -math.log(8)]))
    detr = build("detr")
    for layer in detr.decoder.layers:
        layer.cross_attn.in_proj_weight.zero_()
        layer.cross_attn.in_proj_bias.zero_()
    meter = EntropyMeter(num_images=3)
    with meter.measuring(detr):
        detr(*batch)
        detr(batch[0][1:], batch[1][1:])  # 12 tokens each, of which half of the first image are padding
        detr(batch[0][:1], batch[1][:1])  # not measured
    rows, columns = (int((~mask).sum()) for mask in (batch[1][0, ::32, 0], batch[1][0, 0, ::32]))
    expected = -(math.log(rows * columns) + 2 * math.log(12)) / 3
    assert meter.scalars() == pytest.approx({f"attention/negative_entropy_{i}": expected for i in range(3)}, abs=1e-5)
    with record_attention(build("encoder_only")) as recording, pytest.raises(ArgumentError, match="decoder"):
        negative_entropy(recording)


@pytest.mark.parametrize("variant", ["multi_scale", "detr"])
def test_gradients_equal_finite_differences(build, variant):
    detector = build(variant).double().requires_grad_(False)
    torch.manual_seed(2)
    images, mask = torch.randn(1, 3, 64, 64).double(), torch.zeros(1, 64, 64, dtype=torch.bool)
    leaf = images.clone().requires_grad_()
    maps = input_gradients(detector(leaf, mask), leaf, torch.tensor([4]), torch.tensor([1]))[0]
    y, x = divmod(int(maps[0].argmax()), 64)
    numeric = []
    for channel in range(3):
        values = []
        for step in (1e-5, -1e-5):
            moved = images.clone()
            moved[0, channel, y, x] += step
            with torch.no_grad():
                found = detector(moved, mask)
            logits = found.logits[-1, 0, 4]
            scores = logits.softmax(0) if found.no_object else logits.sigmoid()
            values.append(torch.cat((found.boxes[-1, 0, 4], scores[1:2])))
        numeric.append((values[0] - values[1]) / 2e-5)
    expected = torch.stack(numeric)
    for part, columns in enumerate(([0, 1], [2, 3], [4])):
        torch.testing.assert_close(maps[part, y, x], expected[:, columns].norm(), rtol=1e-2, atol=1e-9)

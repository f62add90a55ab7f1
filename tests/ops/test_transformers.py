"""The operator in the models of Hugging Face transformers."""

import importlib

import pytest
import torch

transformers = pytest.importorskip("transformers")

from ms_deform_attn.integrations import transformers as integration  # noqa: E402

MODELS = integration.find_models()
SHAPES = [(8, 6), (4, 3), (2, 2)]
CLASS = "MultiScaleDeformableAttention"


@pytest.fixture(autouse=True)
def _disable():
    yield
    integration.disable()


def module(model):
    return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def call_core(model, value, locations, weights, counts):
    """Calls the attention of a model, which is a class or one of two functions."""
    found = module(model)
    n_heads, size = value.shape[2], (len(counts), counts[0])
    if hasattr(found, "multi_scale_deformable_attention_v2"):
        return found.multi_scale_deformable_attention_v2(value, SHAPES, locations, weights, counts)
    locations, weights = locations.unflatten(3, size), weights.unflatten(3, size)
    if hasattr(found, "multi_scale_deformable_attention"):
        return found.multi_scale_deformable_attention(value, SHAPES, locations, weights)
    assert n_heads == 4
    start = torch.tensor([0, 48, 60])
    return found.MultiScaleDeformableAttention()(value, torch.tensor(SHAPES), SHAPES, start, locations, weights, 64)


def core_inputs(counts):
    value = torch.randn(2, 64, 4, 8, dtype=torch.float64)
    locations = torch.rand(2, 5, 4, sum(counts), 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, 5, 4, sum(counts), dtype=torch.float64)
    return [t.requires_grad_() for t in (value, locations, weights)]


def test_models_of_the_issue_are_found():
    assert set(MODELS) >= {
        *("deformable_detr", "grounding_dino", "mm_grounding_dino", "mask2former", "oneformer"),
        *("rt_detr", "rt_detr_v2", "d_fine", "omdet_turbo"),
    }


@pytest.mark.parametrize("model", MODELS)
def test_same_output_and_gradients(model, monkeypatch):
    kinds = [[4, 4, 4]]
    if hasattr(module(model), "multi_scale_deformable_attention_v2"):
        kinds.append([3, 6, 3])  # numbers of points by level
    for counts in kinds:
        inputs = core_inputs(counts)
        integration.disable()
        expected = call_core(model, *inputs, counts)
        assert integration.enable(model) == [model]
        monkeypatch.setattr(torch.nn.functional, "grid_sample", None)  # used by transformers only
        output = call_core(model, *inputs, counts)
        monkeypatch.undo()
        torch.testing.assert_close(output, expected)
        grad = torch.randn_like(output)
        torch.testing.assert_close(
            torch.autograd.grad(output, inputs, grad), torch.autograd.grad(expected, inputs, grad)
        )


def tiny_deformable_detr():
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5}
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, **sizes, **heads
    )
    return transformers.DeformableDetrForObjectDetection(config).eval()


def test_an_existing_model_and_undoing():
    model, images = tiny_deformable_detr(), torch.randn(1, 3, 96, 64)
    originals = {name: vars(getattr(module(name), CLASS))["forward"] for name in ("deformable_detr", "rt_detr")}
    with torch.no_grad():
        expected = model(images)
        assert integration.enable("deformable_detr", "rt_detr") == integration.enable("rt_detr", "deformable_detr")
        assert all(vars(getattr(module(name), CLASS))["forward"] is not f for name, f in originals.items())
        output = model(images)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.pred_boxes, expected.pred_boxes)
    integration.disable()
    integration.disable()
    assert all(vars(getattr(module(name), CLASS))["forward"] is f for name, f in originals.items())


@pytest.mark.parametrize("counts", [4, [3, 6, 3]])
@pytest.mark.parametrize("when", ["before", "after"])
def test_d_fine_stores_the_function_in_modules(counts, when, monkeypatch):
    config = transformers.DFineConfig(
        d_model=32, decoder_attention_heads=4, num_feature_levels=3, decoder_n_points=counts
    )
    build = module("d_fine").DFineMultiscaleDeformableAttention
    original = module("d_fine").multi_scale_deformable_attention_v2
    if when == "after":
        integration.enable("d_fine")
    attention = build(config)
    integration.disable()
    assert attention.ms_deformable_attn_core is original
    inputs = {"hidden_states": torch.randn(1, 5, 32), "encoder_hidden_states": torch.randn(1, 64, 32)}
    inputs |= {"reference_points": torch.rand(1, 5, 1, 4), "spatial_shapes": torch.tensor(SHAPES)}
    expected = attention(**inputs, spatial_shapes_list=SHAPES)[0]
    integration.enable("d_fine")
    monkeypatch.setattr(torch.nn.functional, "grid_sample", None)
    torch.testing.assert_close(attention(**inputs, spatial_shapes_list=SHAPES)[0], expected)


def test_discrete_sampling_of_rt_detr_v2_is_kept():
    value, locations, weights = core_inputs([4, 4, 4])
    functions = [module("rt_detr_v2").multi_scale_deformable_attention_v2]
    integration.enable("rt_detr_v2")
    functions.append(module("rt_detr_v2").multi_scale_deformable_attention_v2)
    results = [function(value, SHAPES, locations, weights, [4, 4, 4], "discrete") for function in functions]
    assert functions[0] is not functions[1] and torch.equal(*results)


def test_unknown_interfaces_and_models_are_rejected(monkeypatch):
    forward = module("deformable_detr").MultiScaleDeformableAttention.forward

    def changed(self, value, sampling_locations):
        raise AssertionError

    monkeypatch.setattr(module("rt_detr").MultiScaleDeformableAttention, "forward", changed)
    message = (
        r"rt_detr\.\w+\.MultiScaleDeformableAttention must have the parameters .* got \('self', 'value', 'sampling"
    )
    with pytest.raises(RuntimeError, match=message):
        integration.enable("deformable_detr", "rt_detr")
    assert module("deformable_detr").MultiScaleDeformableAttention.forward is forward  # nothing was replaced
    with pytest.raises(ValueError, match="models must be among .*deformable_detr.*, got detr"):
        integration.enable("detr")

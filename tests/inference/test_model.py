"""Metadata of models, and predictions from tensors."""

import pytest
import torch

from projects_deformable_detr.config.inference import ModelMetadata
from projects_deformable_detr.data.images import ImageReader
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.evaluation import EvaluationConfig, TestTimeAugmentationConfig
from projects_deformable_detr.inference.model import to_predictions
from projects_deformable_detr.modeling import postprocess


def test_metadata_round_trip():
    metadata = ModelMetadata(
        ("a", "ö"),
        has_masks=True,
        reader=ImageReader("BGR", (0.0, 100.0)),
        evaluation=EvaluationConfig(thing_classes=(1,), is_panoptic=True),
        tta=TestTimeAugmentationConfig((400, 500), 1000, True, 0.7),
        input_size=(320, 480),
        batch_size=2,
    )
    assert ModelMetadata.from_json(metadata.to_json()) == metadata
    assert ModelMetadata.from_json(ModelMetadata(("a",)).to_json()) == ModelMetadata(("a",))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "Expecting property name"),
        ("{}", "class_names"),
        ('{"class_names": []}', "class_names must be a tuple of at least one name"),
        ("[]", r"ModelMetadata must be an object, got \[\]"),
        ('{"class_names": "ab"}', "class_names must be a tuple of at least one name, got 'ab'"),
        ('{"class_names": [1]}', r"class_names must be a tuple of at least one name, got \(1,\)"),
        ('{"class_names": ["a"], "evaluation": null}', "EvaluationConfig must be an object, got None"),
        ('{"class_names": ["a"], "evaluation": {"tta": []}}', "TestTimeAugmentationConfig must be an object"),
        ('{"class_names": ["a"], "reader": "x"}', "ImageReader must be an object, got 'x'"),
        ('{"class_names": ["a"], "input_size": [1]}', r"input_size must be \(H, W\) in pixels, got \(1,\)"),
        ('{"class_names": ["a"], "input_size": 64}', r"input_size must be \(H, W\) in pixels, got 64"),
        ('{"class_names": ["a"], "input_size": [0, 64]}', r"input_size must be .*got \(0, 64\)"),
        ('{"class_names": ["a"], "size": 3}', "unknown fields size"),
        ('{"class_names": ["a"], "min_size": -1}', "min_size must be at least 0"),
        ('{"class_names": ["a"], "reader": {"format": "GRB"}}', "format must be one of 'RGB', 'BGR'"),
    ],
)
def test_invalid_metadata(text, named):
    with pytest.raises(UserError, match=named):
        ModelMetadata.from_json(text)


def test_predictions_from_tensors():
    logits = torch.tensor([[[5.0, -5.0], [-5.0, 4.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0]]])
    masks = torch.full((1, 2, 4, 4), -1.0)
    masks[0, 1, :, :2] = 1.0
    predictions = to_predictions(logits, boxes, masks, torch.zeros(1, 16, 16, dtype=torch.bool))
    (found,) = postprocess(predictions, [(8, 8)], topk=2)
    assert found.labels.tolist() == [0, 1] and found.boxes.tolist() == [[0, 0, 8, 8], [0, 0, 4, 8]]
    assert not found.masks[0].any() and found.masks[1].nonzero()[:, 1].max() == 3

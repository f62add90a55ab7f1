"""Two processes on gloo: the gradients and the evaluation of one process with the whole batch."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from projects_deformable_detr.standalone import main


def test_two_processes_do_what_one_does(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    # With plain SGD the change of the weights is the gradient. Images of a batch have one size: group norm, which
    # this model has, would see the padding, and that is another in a half batch.
    options = (
        "SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.BASE_LR", 0.05, "SOLVER.MAX_ITER", 1,
        "SOLVER.CLIP_GRADIENTS.ENABLED", False, "SOLVER.WARMUP_ITERS", 0, "MODEL.DETR.DROPOUT", 0.0,
        "MODEL.DETR.WITH_BOX_REFINE", True, "MODEL.DETR.TWO_STAGE", True,
        "INPUT.CROP.ENABLED", False, "INPUT.MIN_SIZE_TRAIN", "(48,)",
    )  # fmt: skip
    main(make_args(tmp_path / "one", *options))
    metrics = main(make_args(tmp_path / "two", "--num-gpus", 2, *options))
    one, two = (torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert not [key for key in one if not torch.allclose(one[key], two[key], rtol=1e-4, atol=1e-5)]
    main(make_args(tmp_path / "half", *options, "SOLVER.IMS_PER_BATCH", 2))
    half = torch.load(tmp_path / "half" / "model_final.pth", weights_only=True)["model"]
    assert [key for key in one if not torch.allclose(one[key], half[key], rtol=1e-4, atol=1e-5)]

    weights = tmp_path / "two" / "model_final.pth"
    again = main(make_args(tmp_path / "eval", "--eval-only", "MODEL.WEIGHTS", weights, *options))
    assert metrics["bbox"] == pytest.approx(again["bbox"], abs=0.1, nan_ok=True)
    found, expected = (
        json.loads((tmp_path / name / "inference" / "coco_instances_results.json").read_text())
        for name in ("two", "eval")
    )
    assert [row["image_id"] for row in found] == [row["image_id"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-4)

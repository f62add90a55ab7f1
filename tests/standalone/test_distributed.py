"""Two processes on gloo: same gradients and evaluation as one process with the whole batch; errors."""

import json
import math
import socket
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import distributed

from projects_deformable_detr.errors import UserError
from projects_deformable_detr.standalone import main
from projects_deformable_detr.standalone.callbacks import ResumeCheck


def test_two_processes_equal_one(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    # With plain SGD, the change of the weights is proportional to the gradient. All images have one size, because the
    # model's group norms depend on the padding, which differs between a batch and its halves.
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


def test_evaluation_on_two_processes_equals_one(
    make_args: Callable[..., Namespace], write_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """With an odd number of images, fewer images than processes, and without annotations."""
    words: list[object] = ["DATASETS.TEST", "('odd', 'one', 'unlabeled')"]
    for name, count in (("odd", 21), ("one", 1), ("unlabeled", 3)):
        (tmp_path / name).mkdir()
        path = write_tiny(tmp_path / name, count, seed=2)
        if name == "unlabeled":
            content = json.loads(path.read_text())
            del content["annotations"]
            path.write_text(json.dumps(content))
        words = ["--register", name, path, path.parent, *words]
    main(make_args(tmp_path / "train", "SOLVER.MAX_ITER", 4, "DATASETS.TEST", "()"))
    words = ["--eval-only", *words, "MODEL.WEIGHTS", tmp_path / "train" / "model_final.pth"]
    expected = main(make_args(tmp_path / "one process", *words))
    found = main(make_args(tmp_path / "two", "--num-gpus", 2, *words))
    assert found.keys() == expected.keys() == {"odd", "one", "unlabeled"}
    for name, count in (("odd", 21), ("one", 1), ("unlabeled", 3)):
        assert found[name]["bbox"] == pytest.approx(expected[name]["bbox"], abs=0.05, nan_ok=True)
        rows, others = (
            json.loads((tmp_path / folder / "inference" / name / "coco_instances_results.json").read_text())
            for folder in ("one process", "two")
        )
        assert [row["image_id"] for row in rows] == [row["image_id"] for row in others]
        assert {row["image_id"] for row in rows} == set(range(1, count + 1))
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in others], abs=1e-5)
    assert math.isnan(found["unlabeled"]["bbox"]["AP"])


def test_unused_features(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    """The last stage has no gradient, so that DDP needs ``find_unused_parameters``."""
    options = ("MODEL.DETR.IN_FEATURES", "['res4']", "SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()")
    main(make_args(tmp_path, "--num-gpus", 2, *options))
    assert (tmp_path / "model_final.pth").is_file()


def test_an_error_in_one_of_several_processes_is_a_message(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        main(make_args(tmp_path, "--num-gpus", 2, "--eval-only", "MODEL.WEIGHTS", "nowhere.pth"))
    assert str(error.value).startswith("nowhere.pth: checkpoint file does not exist")
    assert "Traceback" not in str(error.value)


def test_ranks_compare_their_last_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank is simulated, with the checkpoint of iteration 7."""

    def gather(names: list[str], own: str) -> None:
        names[:] = [own, "model_0000007.ckpt"]

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    ResumeCheck(Path("model_0000007.ckpt")).setup()
    with pytest.raises(UserError, match=r"different last checkpoints \(model_0000007.ckpt, none\)"):
        ResumeCheck(None).setup()


@pytest.mark.slow
def test_machines_with_different_last_checkpoints(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    (tmp_path / "0" / "last_checkpoint").write_text("model_0000007.ckpt")
    (tmp_path / "0" / "model_0000007.ckpt").write_bytes(b"not read")

    def machine(rank: int) -> BaseException | None:
        flags = ("--num-machines", 2, "--machine-rank", rank, "--dist-url", url, "--resume")
        try:
            main(make_args(tmp_path / str(rank), *flags))
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        errors = list(pool.map(machine, range(2)))
    assert [type(error) for error in errors] == [UserError] * 2
    assert "different last checkpoints (model_0000007.ckpt, none)" in str(errors[0])

"""`Detector` gives the detections of the standalone engine's evaluation."""

import json
from pathlib import Path

import pytest

from projects_deformable_detr import Detector
from projects_deformable_detr.standalone import main


@pytest.mark.parametrize("tta", [False, True])
def test_detections_of_the_evaluation(make_args, data_sets, tmp_path, tta):
    options = ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)", "TEST.EVAL_PERIOD", 0]
    options += ["TEST.AUG.ENABLED", tta, "TEST.AUG.MIN_SIZES", "(40, 56)", "TEST.AUG.MAX_SIZE", 80]
    main(make_args(tmp_path, *options))
    folder = tmp_path / ("inference_TTA" if tta else "inference")
    expected: dict[int, list[dict]] = {}
    for item in json.loads((folder / "coco_instances_results.json").read_text()):
        expected.setdefault(item["image_id"], []).append(item)
    detector = Detector.load(tmp_path)
    assert detector.class_names == ("red", "blue")
    _, file, root = data_sets[1]
    images = json.loads(Path(file).read_text())["images"]
    paths = [f"{root}/{image['file_name']}" for image in images]
    for image, found in zip(images, detector(paths, score_threshold=0, tta=tta, batch_size=2), strict=True):
        wanted = expected[image["id"]]
        results = found.to_coco(image["id"], {"red": 5, "blue": 9})
        assert len(results) == len(wanted) > 0
        for one, other in zip(results, wanted, strict=True):
            assert one["category_id"] == other["category_id"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-5 * 56)

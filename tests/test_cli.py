"""Console script ``deformable-detr``: help, completion, exit status, and training by epochs."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from projects_deformable_detr.cli.main import COMMANDS, console, main
from projects_deformable_detr.engine import is_installed

needs_detectron2 = pytest.mark.skipif(not is_installed("detectron2"), reason="detectron2 is not installed")
TINY = (
    (
        "MODEL.WEIGHTS '' MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.NORM BN "
        "MODEL.BACKBONE.FREEZE_AT 0 MODEL.DETR.HIDDEN_DIM 64 MODEL.DETR.DIM_FEEDFORWARD 32 MODEL.DETR.ENC_LAYERS 1 "
        "MODEL.DETR.DEC_LAYERS 1 MODEL.DETR.NUM_OBJECT_QUERIES 5 INPUT.CROP.ENABLED False INPUT.MIN_SIZE_TRAIN (32,) "
        "INPUT.MIN_SIZE_TEST 32 DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 2 SEED 1"
    )
    .replace("''", "")
    .split(" ")
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Returns an annotation file of 6 images, one without objects, and their folder."""
    folder = tmp_path_factory.mktemp("data")
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(6)]
    for image in images:
        Image.new("RGB", (40, 30), (40 * image["id"], 90, 120)).save(folder / image["file_name"])
    boxes = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [5, 5, 12, 9], "area": 108, "iscrowd": 0}
        for i in range(5)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "data.json").write_text(json.dumps(content))
    return [str(folder / "data.json"), str(folder)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_each_command(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: deformable-detr {command}" in out and "Examples:" in out


def test_completion_script_has_the_commands(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit:
        main(["--print-completion", "bash"])
    out = capsys.readouterr().out
    assert exit.value.code == 0 and all(command in out for command in COMMANDS)
    (tmp_path / "complete.sh").write_text(out)
    (tmp_path / "photo.jpg").touch()
    for words, expected in (
        ("train --config-file finetune_r1", "finetune_r18"),
        ("predict --weights detr_r50_p", "detr_r50_panoptic"),
        ("predict --weights W pho", "photo.jpg"),
        ("val --dtype bf", "bfloat16"),
    ):
        line = f"source complete.sh; COMP_WORDS=(deformable-detr {words}); COMP_CWORD={len(words.split())}; "
        line += "_shtab_deformable_detr 2> /dev/null; echo ${COMPREPLY[@]}"
        run = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        assert run.stdout.split() == [expected], run.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("trian", "did you mean train?"),
        ("predict a.jpg --wieghts b.pth", "unknown option --wieghts; did you mean --weights?"),
        ("train --ouptut=out --epochs 3", "unknown option --ouptut; did you mean --output?"),
        ("predict --weights b.pth -- --odd.jpg", "--odd.jpg: no such file or folder"),
        ("predict a.jpg --weights b.pth --format yolov", "did you mean yolo?"),
        ("draw --dataset a --results b.json --output c --count 0", "--count: must be at least 1, got 0"),
        ("shapes --val -1", "--val: must be at least 0, got -1"),
        ("predict a.jpg --weights b.pth -w 3", "unrecognized arguments: -w"),
        ("train --val-data a.json images", "--val-data requires --train-data or --eval-only"),
        ("train --epochs 0 --train-data a.json images", "--epochs must be at least 1"),
        ("train --epochs 2 --train-data a.json images SOLVER.MAX_ITER 3", "cannot be combined with"),
    ],
)
def test_user_errors_have_status_2(line, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(line.split())
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "predict", "serve", "val", "export", "demo"])
def test_busy_wait_of_openmp_is_limited(command, monkeypatch):
    def restart(file, arguments):
        raise InterruptedError(os.environ["GOMP_SPINCOUNT"])

    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # restored after the test
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(os, "execv", restart)  # torch has been imported
    monkeypatch.setattr(sys, "argv", ["deformable-detr", command, "--help"])
    with pytest.raises(InterruptedError, match="^300$"):
        console()
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with pytest.raises(SystemExit):
        console()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize("engine", ["standalone", pytest.param("detectron2", marks=needs_detectron2)])
def test_length_in_epochs(engine, data, tmp_path, capsys):
    line = ["train", "--engine", engine, "--config-file", "configs/Base-DeformableDETR.yaml", "--epochs", "2"]
    output = tmp_path / "output"
    line += ["--train-data", *data, "--val-data", *data, "--output", str(output), "--num-gpus", "0", *TINY]
    assert main([*line, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True"]) == 0
    cfg = yaml.safe_load((output / "config.yaml").read_text())
    assert cfg["DATASETS"]["TRAIN"] == ["data.json (train)"] and cfg["DATASETS"]["TEST"] == ["data.json (val)"]
    assert cfg["SOLVER"]["MAX_ITER"] == cfg["TEST"]["EVAL_PERIOD"] == 4  # 5 images with objects in batches of 2
    assert cfg["SOLVER"]["STEPS"] == [3] and cfg["SOLVER"]["WARMUP_ITERS"] == 0
    assert "--epochs 2: 5 images in batches of 2" in capsys.readouterr().out
    assert (output / "model_final.pth").is_file()

"""``deformable-detr explain``: files and errors."""

import re

import pytest

from projects_deformable_detr.cli.main import main


def test_files(save_tiny, files, tmp_path, capsys):
    weights = str(save_tiny("two_stage"))
    output = tmp_path / "output"
    words = ["explain", "--weights", weights, files[0], "--output", str(output), "--threshold", "0"]
    assert main([*words, "--top-k", "1", "--by", "layer", "level", "--point", "10", "12", "--gradients"]) == 0
    parts = ["", "_layer", "_level"]
    expected = {f"0_0{part}.png" for part in [*parts, "_gradients"]}
    expected |= {f"0_encoder_0_level{level}{part}.png" for level in range(1, 5) for part in parts}
    assert {path.name for path in output.iterdir()} == expected | {"0.html", "0_boxes.png", "0_proposals.png"}
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err


def test_indices_and_layers(save_tiny, files, tmp_path, capsys):
    """Detections keep their indices; ``--layer`` selects the last layer of the encoder, which has two."""
    output = tmp_path / "output"
    words = ["explain", "--weights", str(save_tiny("detr")), files[0], "--output", str(output), "--threshold", "0"]
    assert main([*words, "--detections", "3", "1", "3", "--layer", "3", "--point", "10", "12"]) == 0
    names = {f"0_{part}.png" for part in ("1", "3", "boxes", "encoder_0_level1")}
    assert {path.name for path in output.iterdir()} == names | {"0.html"}
    assert re.search(r"0\.png -> .*0\.html: 3 \w+, 1 \w+\n", capsys.readouterr().out)
    page = (output / "0.html").read_text(encoding="utf-8")
    assert [title[0] for title in re.findall(r'"title":"(\d: )', page)] == ["3", "1"]


def test_images_are_skipped(save_tiny, files, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_text("no image", encoding="utf-8")
    words = ["explain", "--weights", str(save_tiny("detr")), str(broken), *files[:2], "--overwrite"]
    words += ["--output", str(tmp_path / "output")]
    assert main(words) == 1
    assert "broken.png" in capsys.readouterr().err
    assert {path.stem for path in (tmp_path / "output").glob("*.html")} == {"0", "1"}
    assert main([*words, "--threshold", "0.99", "--detections", "0"]) == 1
    message = "--detections cannot be chosen: there are no detections with a score of at least 0.99"
    assert capsys.readouterr().err.count(message) == 2


def test_errors_name_options(save_tiny, files, tmp_path, capsys):
    weights = str(save_tiny("detr"))
    for options, message in (
        (["--layer", "4", "--threshold", "0"], "--layer must be at most 3"),
        (["--by", "level", "--threshold", "0"], "--by must be 'layer' or 'head' for DETR"),
    ):
        words = ["explain", "--weights", weights, files[0], "--output", str(tmp_path / "output"), "--overwrite"]
        assert main([*words, *options]) == 2
        assert message in capsys.readouterr().err
    assert main([*words, "--detections", "400", "--threshold", "0"]) == 1
    assert "--detections must be indices below 7" in capsys.readouterr().err
    assert main([*words, "--point", "100", "5"]) == 1
    assert "--point must be inside the image of 56 x 40 pixels" in capsys.readouterr().err
    for values, message in (((), "expected at least one"), (("0", files[0]), "images come before --detections")):
        with pytest.raises(SystemExit, match="2"):
            main(["explain", "--weights", weights, "--detections", *values])
        assert message in capsys.readouterr().err
    assert main([*words, "--output", "/dev/null/explanations"]) == 2
    assert "/dev/null is a file: choose another folder with --output" in capsys.readouterr().err
    assert main([*words, "--threshold", "0.99"]) == 0
    assert "no detection" in capsys.readouterr().out
    for source in ("-", "val.json"):
        assert main(["explain", "--weights", weights, source]) == 2
        assert f"{source}: must be an image file, folder or pattern" in capsys.readouterr().err

"""Files of failed training steps, and tools/replay_step.py, which repeats them."""

from collections import Counter

import pytest
import torch

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.checkpoint import save_detector
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling import BatchSize, Targets, batch_images
from projects_deformable_detr.training.failures import StepRecorder


@pytest.fixture
def replay(load_script):
    return load_script("tools/replay_step.py")


def samples(counts=(2, 1)):
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((64, 50), (48, 70))]
    targets = [
        Targets(torch.arange(count), torch.rand(count, 4) * 0.2 + 0.4, name=f"{count}.jpg (image id {index})")
        for index, count in enumerate(counts)
    ]
    return images, targets


def test_errors_name_the_images_and_the_file(tmp_path):
    recorder = StepRecorder(tmp_path, seed=3, rank=1, num_classes=5)
    with pytest.raises(ValueError, match="^x$"), recorder.reporting():  # before the first step
        raise UserError("x")
    given = samples()
    for error in (FloatingPointError("loss"), UserError("boxes")):
        recorder.start(7, torch.device("cpu"), lambda: given)
        state = torch.get_rng_state()
        torch.rand(3)
        names = r"2\.jpg \(image id 0\), 1\.jpg \(image id 1\)"
        with pytest.raises(type(error), match=names + r"\..* saved.*0007_rank1\.pth"), recorder.reporting():
            raise error
    step = torch.load(tmp_path / "failed_step_0000007_rank1.pth", weights_only=True)
    assert (step["iteration"], step["seed"], step["rank"], step["num_classes"]) == (7, 3, 1, 5)
    assert torch.equal(step["rng_state"], state)
    assert all(map(torch.equal, step["images"], given[0]))
    assert all(map(torch.equal, step["boxes"], [target.boxes for target in given[1]]))

    recorder.stop()
    with pytest.raises(UserError, match="^next$"), recorder.reporting():  # from the data loader
        raise UserError("next")


def test_a_folder_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    (tmp_path / "file").write_text("")
    recorder = StepRecorder(tmp_path / "file", 0, 0, 5)
    recorder.start(0, torch.device("cpu"), samples)
    with pytest.raises(UserError, match=r"^cause\n.*2\.jpg.* was not saved"), recorder.reporting():
        raise UserError("cause")


@pytest.mark.parametrize("steps", [1, 2])
def test_replay_repeats_losses_and_finds_weights(make_cfg, tmp_path, replay, capsys, steps):
    cfg = make_cfg(DROPOUT=0.5)
    cfg.INPUT.CROP.ENABLED, cfg.SEED = False, 11
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(11)
    detector, criterion = build_detector(cfg).train(), build_criterion(cfg)
    recorder, (images, targets) = StepRecorder(tmp_path, 11, 0, 5, steps), samples()
    recorder.start(4, torch.device("cpu"), lambda: (images, targets))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    inputs, length = [(image.float() - mean) / std for image in images], len(images) // steps
    size = BatchSize(len(images), sum(map(len, targets)))
    losses = Counter()
    for start in range(0, len(images), length):
        rows = slice(start, start + length)
        losses.update(criterion(detector(*batch_images(inputs[rows])), targets[rows], size))
    with pytest.raises(FloatingPointError), recorder.reporting():
        raise FloatingPointError("loss")

    step, config = tmp_path / "failed_step_0000004_rank0.pth", str(tmp_path / "config.yaml")
    assert replay.replay(step, config, "") == 0
    printed = capsys.readouterr().out
    assert "device cpu; the step failed on the CPU" in printed
    assert "iteration 4, seed 11" in printed and "1.jpg (image id 1)" in printed
    for name, value in losses.items():
        assert f"{name}: {value.item():.6g}\n" in printed  # with the same dropout

    detector.encoder.layers[1].ffn.linear1.weight.data[0] = 1e38  # finite, as checkpoints must be
    save_detector(tmp_path / "bad.pth", detector, iteration=3, cfg_text="")
    with pytest.raises(UserError, match="matching cost"):
        replay.replay(step, config, str(tmp_path / "bad.pth"))
    assert "encoder.layers.1.ffn.linear1" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"bad\.pth is not a failed_step file"):
        replay.replay(tmp_path / "bad.pth", config, "")
    with pytest.raises(UserError, match=r"config file .*lost\.yaml: "):
        replay.replay(step, str(tmp_path / "lost.yaml"), "")


@pytest.mark.parametrize("engine", ["detectron2", "standalone"])
def test_replay_uses_the_trained_weights_of_an_average(make_cfg, tmp_path, replay, engine):
    detector = build_detector(make_cfg())
    averaged = {f"detector.{key}": value for key, value in detector.state_dict().items()}
    trained = {key: value + 1 if value.is_floating_point() else value for key, value in averaged.items()}
    contents = {
        "detectron2": {"model": averaged, "ema": {"model": trained, "n_averaged": torch.tensor(2)}},
        "standalone": {"state_dict": averaged, "current_model_state": trained},
    }
    torch.save(contents[engine], tmp_path / "model.pth")
    replay.load_trained(detector, str(tmp_path / "model.pth"))
    assert all(torch.equal(value, trained[f"detector.{key}"]) for key, value in detector.state_dict().items())

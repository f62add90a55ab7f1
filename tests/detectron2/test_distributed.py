"""Two processes on gloo: same gradients as one process with the whole batch; equal initial weights."""

import atexit
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.engine import SimpleTrainer, create_ddp_model, launch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torchvision.models import resnet18

from projects_deformable_detr.detectron2_plugin import Trainer  # its import registers the models in spawned processes
from projects_deformable_detr.detectron2_plugin.accumulation import AccumulatingAMPTrainer, AccumulatingTrainer
from projects_deformable_detr.detectron2_plugin.launch import process_groups
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.training import launch as training_launch

MASKS = {"MODEL__MASK_ON": True, "MODEL__DETR__HIDDEN_DIM": 128, "MODEL__DETR__NHEADS": 8}
MASKS |= {"MODEL__RESNETS__OUT_FEATURES": "['res2', 'res3', 'res4', 'res5']"}
TWO_STAGE = {"MODEL__DETR__WITH_BOX_REFINE": True, "MODEL__DETR__TWO_STAGE": True}
SOFTMAX = {"MODEL__META_ARCHITECTURE": "DETR", "MODEL__DETR__IN_FEATURES": "['res5']"}
SOFTMAX |= {"MODEL__RESNETS__OUT_FEATURES": "['res5']", "MODEL__DETR__NUM_FEATURE_LEVELS": 1}
# Number of objects in each of four images, two for each rank. The ranks' numbers differ, or one rank has none.
CASES = [
    ({}, (1, 0, 7, 2)), ({}, (3, 2, 0, 0)), (MASKS, (0, 0, 1, 2)), (TWO_STAGE, (2, 1, 0, 0)), (SOFTMAX, (0, 1, 7, 2)),
]  # fmt: skip


def batch(counts):
    generator = torch.Generator().manual_seed(0)
    records = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 30
        instances = Instances((64, 80))
        instances.gt_boxes = Boxes(torch.cat([corner, corner + 20], dim=1))
        instances.gt_classes = torch.arange(count) % 2
        instances.gt_masks = BitMasks(torch.rand(count, 64, 80, generator=generator) > 0.5)
        records.append({"image": torch.rand(3, 64, 80, generator=generator) * 255, "instances": instances})
    return records


def gradients(cfg, records, distributed, parts=1):
    """Returns the gradients of a step, computed in parts, and its losses, averaged over ranks."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(cfg)
    wrapped = create_ddp_model(model, broadcast_buffers=False, device_ids=None) if distributed else model
    arguments = wrapped, [records], torch.optim.SGD(model.parameters(), 0.1)
    loop = SimpleTrainer(*arguments) if parts == 1 else AccumulatingTrainer(*arguments, accumulation_steps=parts)
    with EventStorage(start_iter=19) as storage:  # an iteration with all logged values
        loop.iter = 19
        loop.run_step()
        losses = {name: value for name, (value, _) in storage.latest().items() if "time" not in name}
        assert [len(values.values()) for values in storage.histories().values()] == [1] * len(storage.histories())
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}, losses


@pytest.mark.parametrize(("options", "counts"), CASES)
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_give_the_gradients_of_the_batch(make_cfg, options, counts, parts):
    cfg = make_cfg(MODEL__DETR__NUM_CLASSES=2, **options)
    expected, losses = gradients(cfg, batch(counts), distributed=False)
    found, others = gradients(cfg, batch(counts), distributed=False, parts=parts)
    assert others == pytest.approx(losses, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_accumulation_steps_must_divide_the_batch(make_cfg):
    cfg = make_cfg(MODEL__DETR__NUM_CLASSES=2)
    with pytest.raises(UserError, match=r"SOLVER.ACCUMULATION_STEPS 4 must divide .*, got 6"):
        gradients(cfg, batch((1, 0, 7, 2, 1, 1)), distributed=False, parts=4)


def test_only_the_first_micro_batch_is_visualized(make_cfg):
    cfg = make_cfg(MODEL__DETR__NUM_CLASSES=2, VIS_PERIOD=19)
    model = build_model(cfg)
    loop = AccumulatingTrainer(
        model, [batch((1, 0, 7, 2))], torch.optim.SGD(model.parameters(), 0.1), accumulation_steps=2
    )
    with EventStorage(start_iter=19) as storage:
        loop.iter = 19
        loop.run_step()
        assert len(storage._vis_data) == 1
    assert not loop.batch  # released


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_accumulation_with_a_gradient_scaler(make_cfg, monkeypatch):
    cfg = make_cfg(MODEL__DETR__NUM_CLASSES=2)
    expected, _ = gradients(cfg, batch((1, 0, 7, 2)), distributed=False)
    torch.manual_seed(0)
    model = build_model(cfg)
    loop = AccumulatingAMPTrainer(
        model,
        [batch((1, 0, 7, 2))],
        torch.optim.SGD(model.parameters(), 0.1),
        grad_scaler=torch.amp.GradScaler("cpu", init_scale=64.0),
        log_grad_scaler=True,
        accumulation_steps=2,
    )
    loop.iter = 0
    with EventStorage() as storage:
        if not torch.cuda.is_available():
            with pytest.raises(AssertionError, match="CUDA is required"):
                loop.run_step()
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        loop.run_step()
        assert storage.latest()["[metric]grad_scaler"][0] == 64.0
    for name, parameter in model.named_parameters():  # unscaled by the step
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


def exit_after(work, *arguments):
    """Ends a process of Detectron2's `launch`, which leaves process groups whose threads may abort its shutdown."""
    work(*arguments)
    os._exit(0)


def worker(cfgs, path):
    rank = comm.get_rank()
    records = [batch(counts)[2 * rank : 2 * rank + 2] for _, counts in CASES]
    found = [gradients(*pair, distributed=True) for pair in zip(cfgs, records, strict=True)]
    found.append(gradients(cfgs[0], records[0], distributed=True, parts=2))
    torch.save(found, f"{path}/{rank}.pth")


@pytest.mark.usefixtures("forkserver")
def test_two_processes_give_the_gradients_of_twice_the_batch(make_cfg, tmp_path):
    cfgs = [make_cfg(MODEL__DETR__NUM_CLASSES=2, **options) for options, _ in CASES]
    for cfg in cfgs:
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()  # spawned processes have no registered data sets
    launch(exit_after, 2, dist_url="auto", args=(worker, cfgs, str(tmp_path)))
    ranks = zip(*(torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)), strict=True)
    for cfg, (_, counts), ((first, logged), (second, _)) in zip(
        [*cfgs, cfgs[0]], [*CASES, CASES[0]], ranks, strict=True
    ):
        alone, losses = gradients(cfg, batch(counts), distributed=False)
        losses["cardinality_error"] = logged["cardinality_error"]  # each process logs its own value
        assert logged == pytest.approx(losses, rel=1e-5)
        assert first.keys() == second.keys() == alone.keys()
        for name, expected in alone.items():
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
            torch.testing.assert_close(
                first[name], expected, rtol=1e-3, atol=1e-5, msg=lambda text, case=(counts, name): f"{case}: {text}"
            )


def load_backbone(cfg, path):
    torch.set_num_threads(1)
    torch.manual_seed(comm.get_rank())
    model = build_model(cfg)
    Trainer.build_checkpointer(cfg, model).resume_or_load(f"{path}/resnet18.pth", resume=False)
    torch.save(model.state_dict(), f"{path}/{comm.get_rank()}.pth")


@pytest.mark.usefixtures("forkserver")
def test_all_processes_have_the_same_weights_after_loading_a_backbone(make_cfg, tmp_path):
    full_width = {"MODEL__RESNETS__STEM_OUT_CHANNELS": 64, "MODEL__RESNETS__RES2_OUT_CHANNELS": 64}
    cfg = make_cfg(MODEL__DETR__NUM_CLASSES=2, MODEL__RESNETS__NORM="FrozenBN", **full_width)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    launch(exit_after, 2, dist_url="auto", args=(load_backbone, cfg, str(tmp_path)))
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    for name, expected in first.items():
        torch.testing.assert_close(second[name], expected, rtol=0, atol=0, msg=name)


def write_gloo_threads(folder):
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    Path(folder, os.environ["RANK"]).write_text("".join(name for name in names if "gloo" in name))


def gather_ranks(cfg, folder):
    atexit.register(write_gloo_threads, folder)
    with process_groups(cfg):
        return comm.all_gather(comm.get_local_rank())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed on Linux only")
def test_no_thread_of_gloo_is_left_when_a_process_exits(make_cfg, tmp_path):
    """A remaining thread aborts the process if it needs the interpreter during shutdown."""
    assert training_launch.launch(gather_ranks, 2, 1, 0, "auto", make_cfg(), str(tmp_path)) == [0, 1]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["", ""]

"""The command: what it prints, writes and refuses."""

import re
import shlex
import subprocess
import sys

import pytest
import yaml

from projects_deformable_detr import get_cfg, model_zoo
from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.migrate import __main__ as command
from projects_deformable_detr.migrate.key_value import value_of

WORDS = "--with_box_refine --num_queries 100 --sgd --cache_mode --dropout 0 --eval --resume theirs.pth"
LINE = WORDS.split()


def test_the_printed_words_are_train_nets(run):
    """Split as a shell does, they make the config that --out writes."""
    status, out, said = run("official", "--", *LINE)
    assert status == 0
    args = argument_parser().parse_args(shlex.split(out))
    assert args.eval_only and args.config_file.endswith("configs/deformable_detr_r50_box_refine_50ep.yaml")
    cfg = get_cfg("standalone")
    cfg.merge_from_file(args.config_file)
    before = cfg.clone()
    cfg.merge_from_list(args.opts)
    assert (cfg.MODEL.DETR.NUM_OBJECT_QUERIES, cfg.MODEL.DETR.DROPOUT, cfg.SOLVER.OPTIMIZER) == (100, 0.0, "SGD")
    assert cfg.MODEL.WEIGHTS == "theirs.pth" and len(args.opts) == 8
    assert cfg.MODEL.BACKBONE == before.MODEL.BACKBONE
    assert said.splitlines()[-1] == "migrate: WARNING: --cache_mode has no counterpart: images are read from the disk"


def test_out_writes_a_config_relative_to_its_folder(run, tmp_path):
    path = tmp_path / "some" / "folder" / "x.yaml"
    status, out, _ = run("official", "--out", path, "--", *LINE)
    assert (status, out) == (0, f"train_net.py --config-file {path} --eval-only\n")
    base = yaml.safe_load(path.read_text())["_BASE_"]
    assert (path.parent / base).resolve() == model_zoo.config_file("deformable_detr_r50_box_refine_50ep").resolve()
    cfg = get_cfg("standalone")
    cfg.merge_from_file(str(path))
    assert (cfg.MODEL.DETR.WITH_BOX_REFINE, cfg.MODEL.DETR.DROPOUT, cfg.SOLVER.MAX_ITER) == (True, 0.0, 184823)
    assert [item.name for item in path.parent.iterdir()] == ["x.yaml"]  # nothing of the writing is left


def test_out_does_not_replace_a_file(run, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("mine")
    status, out, said = run("official", "--out", path, "--", "--two_stage", "--with_box_refine")
    assert (status, out, path.read_text()) == (2, "", "mine")
    assert f"migrate: {path} exists: --overwrite replaces it" in said
    assert run("official", "--out", path, "--overwrite", "--", "--two_stage")[0] == 0
    assert "TWO_STAGE: true" in path.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["official", "--", "--nmu_queries", "3"],
            "--nmu_queries is no option of official: did you mean --num_queries",
        ),
        (["official", "--", "--num_queries", "few"], "argument --num_queries: invalid int value: 'few'"),
        (["official", "--", "--pre_norm"], "--pre_norm is an option of DETR in official, not of this model"),
        (["official", "--config", "detr", "--", "--two_stage"], "--two_stage is an option of Deformable DETR"),
        (["official", "--", "--backbone", "resnet152"], "the ResNets here are resnet18, resnet34"),
        (["official", "--", "--dataset_file", "lvis"], "named by --register"),
        (["official", "--", "--resume", "https://host/x.pth"], "download it, and name the file"),
        (
            ["official", "--", "--lr_linear_proj_names", "x"],
            "here it is always ['reference_points', 'sampling_offsets']",
        ),
        (["official", "--config", "dino", "--"], "'dino' is none of official's configs (--config): main.py"),
        (["official", "--gpus", "0"], "--gpus and --images must be at least 1"),
        (["official", "--from-checkpoint", "nowhere.pth"], "nowhere.pth: no checkpoint"),
        (["detrex", "--", "model.num_queries=3"], "name one of detrex's configs (--config): detr_r50_300ep"),
        (["detrex", "--from-checkpoint", "x.pth"], "detrex's files hold no options that can be read"),
        (["detrex", "--config", "detr_r50_300ep", "--", "model.num_querys=3"], "did you mean model.num_queries"),
        (["detrex", "--config", "detr_r50_300ep", "--", "--num-gpus"], "--num-gpus: a value must follow"),
        (["detrex", "--config", "detr_r50_300ep", "--", "--num-gpus", "0"], "--num-gpus 0: a whole number"),
        (["detrex", "--config", "detr_r50_300ep", "--", "--amp"], "'--amp' is neither KEY=VALUE nor"),
        (["mmdetection", "--config", "detr_r50_8xb2-150e_coco", "--", "8"], "'8' is neither KEY=VALUE nor"),
        (
            ["detrex", "--config", "detr_r50_300ep", "--", "model.embed_dim=128"],
            "disagree: both are MODEL.DETR.HIDDEN_DIM",
        ),
        (["detrex", "--config", "detr_r50_300ep", "--", "lr_multiplier.scheduler.values=[1,0.1,0.05]"], "SOLVER.GAMMA"),
        (
            ["mmdetection", "--", "detr_r50_8xb2-150e_coco.py", "param_scheduler.0.type=CosineAnnealingLR"],
            "param_scheduler.0.type 'CosineAnnealingLR': here it is always 'MultiStepLR'",
        ),
        (["mmdetection", "--config", "detr_r50_8xb2-150e_coco", "--", "model.num_queries=many"], "'many' does not fit"),
        (["transformers", "--from-checkpoint", "nowhere"], "nowhere: no config that can be read"),
        ([], "name a source: official, detrex, mmdetection, transformers"),
    ],
)
def test_what_is_refused(run, words, said):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert said in err and "Traceback" not in err


def test_an_abbreviated_option_is_theirs_too(run):
    status, out, _ = run("official", "--", "--num_q", "50")
    assert status == 0 and "MODEL.DETR.NUM_OBJECT_QUERIES 50" in out


@pytest.mark.parametrize(
    ("source", "words", "lines"),
    [
        (
            "mmdetection",
            "tools/train.py configs/detr/detr_r50_8xb2-500e_coco.py --cfg-options model.num_queries=50 "
            "model.train_cfg.assigner.match_costs.0.weight=3 param_scheduler=[{'milestones':[100,200]}] resume=True",
            [
                "--resume",
                "MODEL.DETR.NUM_OBJECT_QUERIES 50",
                "MODEL.DETR.COST_CLASS 3.0",
                "SOLVER.STEPS '(739294, 1478588)'",
            ],
        ),
        (
            "detrex",
            "tools/train_net.py --config-file projects/detr/configs/detr_r101_dc5_300ep.py optimizer.lr=3e-4 "
            "train.init_checkpoint=mine.pth dataloader.train.dataset.names=cells_train model.num_classes=3",
            ["SOLVER.BASE_LR 0.0003", "MODEL.WEIGHTS mine.pth"],
        ),
        (
            "transformers",
            "deformable_detr two_stage=true with_box_refine=true two_stage_num_proposals=7",
            ["NUM_OBJECT_QUERIES 7"],
        ),
    ],
)
def test_pasted_lines(run, source, words, lines):
    status, out, _ = run(source, "--", *words.split())
    assert status == 0
    for line in lines:
        assert any(found.endswith(line) for found in out.splitlines()), (line, out)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-4", 1e-4), ("True", True), ("true", True), ("(1,2)", (1, 2)), ("[a, b]", ["a", "b"]),
     ("x.pth", "x.pth"), ("None", None), ("[", "[")],
)  # fmt: skip
def test_values(text, value):
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["official", "--", "--output_dir", "my out dir"], "OUTPUT_DIR", "my out dir"),
        (["official", "--", "--device", "cuda; touch x"], "MODEL.DEVICE", "cuda; touch x"),
        (["official", "--", "--device", "$(touch x)`touch x`'\""], "MODEL.DEVICE", "$(touch x)`touch x`'\""),
        (
            ["detrex", "--config", "detr_r50_300ep", "--", "dataloader.train.dataset.names=['my data','b']"],
            "DATASETS.TRAIN",
            ("my data", "b"),
        ),
        (["official", "--images", 3200, "--", "--lr_drop", "20"], "SOLVER.STEPS", (2000, 4000)),
    ],
)
def test_a_shell_reads_what_was_meant(run, tmp_path, words, key, value):
    """Printed by a shell, word by word, and merged as train_net.py does."""
    status, out, _ = run(*words)
    assert status == 0
    script = "for word in " + out.replace("\n", " ") + "; do printf '%s\\0' \"$word\"; done"
    shell = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    opts = argument_parser().parse_args(shell.stdout.split("\0")[:-1]).opts
    cfg = get_cfg("standalone")
    cfg.merge_from_list(opts)
    for name in key.split("."):
        cfg = cfg[name]
    assert (type(cfg), cfg) == (type(value), value)
    assert list(tmp_path.iterdir()) == []


def test_text_that_looks_like_a_number_stays_text(run):
    """It has quotes of its own, as Detectron2's reader of KEY VALUE takes Python's values."""
    _, out, _ = run("official", "--", "--resume", "2024")
    assert "'2024'" in shlex.split(out)


def test_the_written_files_name_is_one_word(run, tmp_path):
    path = tmp_path / "my config.yaml"
    _, out, _ = run("official", "--out", path, "--", "--eval")
    assert shlex.split(out) == ["train_net.py", "--config-file", str(path), "--eval-only"]


DETR = ["--config", "detr_r50_8xb2-150e_coco", "--"]
HOOK = "custom_hooks.EarlyStoppingHook"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["official", "--", "--lr", "0"], "--lr 0.0"),
        (["official", "--", "--lr_drop", "0"], "--lr_drop 0"),
        (["official", "--", "--batch_size", "0"], "batch_size 0"),
        (["mmdetection", *DETR, "model.backbone.out_indices=3"], "model.backbone.out_indices 3: no value"),
        (["mmdetection", *DETR, "model.backbone.out_indices=[4]"], "model.backbone.out_indices [4]"),
        (["mmdetection", *DETR, "model.backbone.out_indices=[-1]"], "model.backbone.out_indices [-1]"),
        (["mmdetection", *DETR, "model.data_preprocessor.mean=None"], "model.data_preprocessor.mean None does not fit"),
        (["mmdetection", *DETR, "train_dataloader.batch_size=x"], "train_dataloader.batch_size 'x'"),
        (["mmdetection", *DETR, "train_dataloader.batch_size=0"], "train_dataloader.batch_size 0"),
        (["mmdetection", *DETR, "param_scheduler.0.milestones=30"], "param_scheduler.0.milestones 30: no value"),
        (["mmdetection", *DETR, "default_hooks.checkpoint.save_best=coco/AR"], "save_best 'coco/AR'"),
        (["mmdetection", *DETR, "default_hooks.checkpoint.by_epoch=False"], "by_epoch False"),
        (["mmdetection", *DETR, f"{HOOK}.type=x", f"{HOOK}.monitor=loss"], "EarlyStoppingHook.monitor 'loss'"),
        (["mmdetection", *DETR, "custom_hooks.EMAHook.type=x", "custom_hooks.EMAHook.momentum=0"], "momentum 0"),
        (
            ["detrex", "--config", "detr_r50_300ep", "--", "lr_multiplier.scheduler.milestones=5"],
            "lr_multiplier.scheduler.milestones 5: no value",
        ),
        (["transformers", "--config", "detr", "--", "backbone_config=5"], "backbone_config 5: no value"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(run, words, said):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("migrate: ") and said in err and len(err.splitlines()) == 1


def test_as_a_program(tmp_path):
    words = [sys.executable, "-m", "projects_deformable_detr.migrate", "official", "--", "--frobnicate"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("migrate: --frobnicate is no option of official")


def test_without_arguments_the_parser_is_whole():
    assert command.argument_parser().parse_args([]).source is None


SCRIPT = "configs/r50_deformable_detr_single_scale_dc5.sh"


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        (f"GPUS_PER_NODE=8 ./tools/run_dist_launch.sh 8 {SCRIPT}", 8),
        (f"GPUS_PER_NODE=8 ./tools/run_dist_slurm.sh part deformable_detr 24 {SCRIPT} --lr 1e-4", 24),
        ("python -m torch.distributed.launch --nproc_per_node=8 --use_env main.py", 8),
        ("torchrun --nproc_per_node 4 --nnodes 3 main.py --lr 1e-4", 12),
        ("torchrun --nproc-per-node gpu main.py", 16),
        ("python -u main.py", 16),
        ("python run_with_submitit.py --timeout 3000 --coco_path coco", 32),
        ("python run_with_submitit.py --nodes 1 --ngpus 2", 2),
    ],
)
def test_the_launcher_tells_the_gpus(run, words, gpus):
    status, _, said = run("official", "--", *words.split())
    assert status == 0 and f"{2 * gpus} images in a batch over {gpus} GPUs" in said
    assert ("WARNING: --nproc_per_node gpu: it tells no number" in said) == ("gpu main" in words)
    assert ("WARNING: --timeout is ignored" in said) == ("3000" in words)
    assert ("their config: detr" in said) == ("submitit" in words)
    status, _, said = run("official", "--gpus", "5", "--", *words.split())
    assert status == 0 and "over 5 GPUs" in said
    told = gpus != 16
    assert (f"--gpus 5 counts, not the {gpus} GPUs that their line tells" in said) == told


def test_two_configs_contradict(run):
    status, out, said = run("official", "--config", "r50_deformable_detr", "--", SCRIPT)
    assert (status, out) == (2, "")
    assert "--config r50_deformable_detr contradicts the command line, which names r50_deformable_detr_single" in said
    assert run("official", "--config", SCRIPT[8:-3], "--", SCRIPT)[0] == 0


MM = "configs/detr/detr_r50_8xb2-150e_coco.py"


@pytest.mark.parametrize(
    ("source", "words", "line", "told"),
    [
        ("mmdetection", f"./tools/dist_train.sh {MM} 4", "SOLVER.IMS_PER_BATCH 8", "over 4 GPUs"),
        ("mmdetection", f"NNODES=2 PORT=29500 bash tools/dist_train.sh {MM} 3", "SOLVER.IMS_PER_BATCH 12", "6 GPUs"),
        ("mmdetection", f"bash tools/dist_train.sh {MM} 8 --amp", "SOLVER.AMP.ENABLED True", "over 8 GPUs"),
        ("mmdetection", f"python tools/train.py {MM} --amp --work-dir X", "OUTPUT_DIR X", "over 8 GPUs"),
        ("mmdetection", f"python tools/train.py {MM} --work-dir=X --resume", "--resume", "over 8 GPUs"),
        ("mmdetection", f"tools/train.py --resume auto {MM}", "--resume", "over 8 GPUs"),
        ("mmdetection", f"tools/train.py {MM} --resume x.pth", "MODEL.WEIGHTS x.pth", "over 8 GPUs"),
        ("mmdetection", f"tools/train.py {MM} --auto-scale-lr", "", "WARNING: auto_scale_lr.enable has no counterpart"),
        (
            "mmdetection",
            f"torchrun --nproc_per_node=3 tools/train.py {MM} --launcher pytorch --cfg-options model.num_queries=5",
            "MODEL.DETR.NUM_OBJECT_QUERIES 5",
            "over 3 GPUs",
        ),
        ("mmdetection", f"tools/train.py {MM} --launcher none", "", "WARNING: --launcher is ignored"),
        (
            "detrex",
            "tools/train_net.py --config-file projects/detr/configs/detr_r50_300ep.py --num-gpus 4 optimizer.lr=2e-4",
            "SOLVER.BASE_LR 0.0002",
            "over 4 GPUs",
        ),
        (
            "detrex",
            "python tools/train_net.py --config-file=projects/detr/configs/detr_r50_300ep.py --num-gpus 4 "
            "--num-machines=2 --eval-only",
            "--eval-only",
            "over 8 GPUs",
        ),
    ],
)
def test_published_lines_with_flags(run, source, words, line, told):
    status, out, said = run(source, "--", *words.split())
    assert status == 0, said
    assert not line or line in out.splitlines()
    assert told in said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--lr", "-1"], "--lr -1.0: .* above 0"),
        (["--epochs", "0"], "SOLVER.MAX_ITER would be 0"),
        (["--nheads", "7"], "HIDDEN_DIM would be 256, no multiple of MODEL.DETR.NHEADS 7"),
    ],
)
def test_values_that_no_training_can_have(options, named, capsys):
    assert command.main(["official", "--", *options]) == 2
    assert re.search(named, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["frobnicate", "--frobnicate"])
def test_options_are_ignored_by_either_spelling(name, capsys):
    assert command.main(["official", f"--ignore={name}", "--", "--frobnicate", "3"]) == 0, capsys.readouterr().err


def test_a_folder_is_no_file_to_write(tmp_path, capsys):
    for flags in ([], ["--overwrite"]):
        assert command.main(["official", "--out", str(tmp_path), *flags, "--"]) == 2
        assert f"{tmp_path} is a folder: name the file to write" in capsys.readouterr().err

"""Shared fixtures: one thread, a fixed seed, and the config of a model whose training step takes milliseconds."""

import importlib.metadata
import importlib.util
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from projects_deformable_detr import get_cfg
from projects_deformable_detr.data import images
from projects_deformable_detr.data.load import log_once
from projects_deformable_detr.training import launch

# The single-scale DC5 model needs bottleneck blocks.
VARIANTS: dict[str, dict[str, Any]] = {
    "single_scale": {"IN_FEATURES": ["res5"], "NUM_FEATURE_LEVELS": 1},
    "single_scale_dc5": {"IN_FEATURES": ["res5"], "NUM_FEATURE_LEVELS": 1, "DEPTH": 50, "RES5_DILATION": 2},
    "multi_scale": {},
    "box_refine": {"WITH_BOX_REFINE": True},
    "two_stage": {"WITH_BOX_REFINE": True, "TWO_STAGE": True},
    "encoder_only": {"DEC_LAYERS": 0},
    "own_level": {"MULTI_SCALE_ATTENTION": False},
    "detr": {"META_ARCHITECTURE": "DETR", "IN_FEATURES": ["res5"], "NUM_FEATURE_LEVELS": 1},
    "detr_pre_norm": {
        "META_ARCHITECTURE": "DETR",
        "IN_FEATURES": ["res5"],
        "NUM_FEATURE_LEVELS": 1,
        "PRE_NORM": True,
        "POSITION_EMBEDDING": "learned",
    },
    "detr_dc5_plus": {
        "META_ARCHITECTURE": "DETR",
        "IN_FEATURES": ["res5"],
        "NUM_FEATURE_LEVELS": 1,
        "DEPTH": 50,
        "RES5_DILATION": 2,
        "CLASS_LOSS": "focal",
    },
}
_RESNETS = ("DEPTH", "RES5_DILATION", "NORM")


def pytest_report_header() -> str:
    """Adds the versions of the main packages to the log of a test run."""
    found = []
    for package in ("torch", "torchvision", "numpy", "detectron2", "lightning"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return "with " + ", ".join(found)


@pytest.fixture(autouse=True)
def _reset_process() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Warnings are logged once per folder and process, whichever test causes them first.
    log_once.cache_clear()
    images._noted.clear()
    _remove_log_handlers()


def _remove_log_handlers() -> None:
    """Removes the handlers of earlier runs, which write to files and streams that are closed."""
    for name in ("projects_deformable_detr", "detectron2", "fvcore"):
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()
        log.setLevel(logging.NOTSET)
        log.propagate = True
    if "detectron2" in sys.modules:
        from detectron2.utils.logger import setup_logger

        setup_logger.cache_clear()


# Tests run in parallel; more threads in the processes that they start would compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Third-party packages whose import takes seconds. The forkserver ignores missing ones.
_PRELOADED = ["torch._dynamo", "torch.utils.tensorboard", "torchvision", "scipy.optimize", "pytest"]
multiprocessing.set_forkserver_preload([*_PRELOADED, "detectron2.engine", "detectron2.evaluation", "lightning"])
_RUN_PYTHON = """
import os, runpy, sys
for number, name in enumerate(("stdout", "stderr"), 1):
    os.dup2(os.open(os.path.join(logs, name), os.O_WRONLY | os.O_CREAT), number)
os.chdir(folder)
sys.argv = words[1:] if words[0] == "-m" else words
if words[0] == "-c":
    exec(words[1], {"__name__": "__main__"})
else:
    run = runpy.run_module if words[0] == "-m" else runpy.run_path
    run(sys.argv[0], run_name="__main__", **{"alter_sys": True} if words[0] == "-m" else {})
"""


@pytest.fixture
def python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``python("-m", module, argument…)`` or ``python("-c", code)`` or ``python(script, argument…)`` in a new process.

    The process is forked from a server that has imported third-party packages, but not the project.
    """

    def run(*words: object, cwd: Path = Path()) -> subprocess.CompletedProcess[str]:
        command, logs = [str(word) for word in words], tmp_path_factory.mktemp("logs")
        names = {"words": command, "folder": cwd.resolve(), "logs": logs}
        process = multiprocessing.get_context("forkserver").Process(target=exec, args=(_RUN_PYTHON, names))
        process.start()
        process.join(300)
        process.kill()
        texts = ((logs / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(command, process.exitcode, *texts)

    return run


@pytest.fixture
def forkserver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `launch` and Detectron2's `launch` fork processes from a server that has imported third-party packages.

    Spawned processes would import them again, which takes several seconds for each. As in a spawned process, the
    project's modules are imported when the arguments are unpickled.
    """

    def start_processes(*args: Any, start_method: str = "spawn", **options: Any) -> Any:
        return original(*args, start_method="forkserver", **options)

    original = torch.multiprocessing.start_processes
    for module in (torch.multiprocessing, launch):
        monkeypatch.setattr(module, "start_processes", start_processes)


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Returns ``load_script(path)``, which imports a script by its path in the repository."""

    def load(path: str) -> ModuleType:
        file = Path(__file__).resolve().parents[1] / path
        spec = importlib.util.spec_from_file_location(f"script_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def make_cfg() -> Callable[..., Any]:
    """Returns ``make_cfg(variant, KEY=value…)`` for tiny models; keys of MODEL.DETR, or DEPTH, RES5_DILATION, NORM."""

    def make(variant: str = "multi_scale", **changes: Any) -> Any:
        cfg = get_cfg("standalone")
        detr, resnets = cfg.MODEL.DETR, cfg.MODEL.RESNETS
        detr.NUM_CLASSES, detr.NUM_OBJECT_QUERIES = 5, 7
        detr.HIDDEN_DIM, detr.NHEADS, detr.DIM_FEEDFORWARD = 64, 4, 48
        detr.ENC_LAYERS, detr.DEC_LAYERS, detr.DROPOUT = 2, 3, 0.0
        detr.ENC_N_POINTS = detr.DEC_N_POINTS = 2
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        resnets.DEPTH, resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS = 18, 16, 16
        for key, value in {**VARIANTS[variant], **changes}.items():
            section = cfg.MODEL if key in ("META_ARCHITECTURE", "MASK_ON") else resnets if key in _RESNETS else detr
            section[key] = value
        if resnets.DEPTH >= 50:
            resnets.RES2_OUT_CHANNELS = 32
        used = {*detr.IN_FEATURES, *(detr.MASKS.IN_FEATURES if cfg.MODEL.MASK_ON else [])}
        resnets.OUT_FEATURES = sorted(used)
        return cfg

    return make

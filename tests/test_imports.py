"""Checks that `lint-imports` lacks: third-party imports, config keys below ``config/``, missing packages."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import ms_deform_attn
import pytest
from PIL import Image

import projects_deformable_detr
from projects_deformable_detr import engine
from projects_deformable_detr.errors import UserError

PROJECT = Path(projects_deformable_detr.__file__).parent
OPS = Path(ms_deform_attn.__file__).parent


def imported(file: Path, root: Path) -> Iterator[str]:
    """Yields absolute names of all imports in a file, in functions too; ``root`` is the package's folder."""
    package = (root.name, *file.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_below(folder: Path, root: Path = PROJECT) -> dict[str, set[str]]:
    """Returns {imported name: files} of a folder of the package."""
    found: dict[str, set[str]] = {}
    files = sorted(folder.rglob("*.py"))
    assert files, folder
    for file in files:
        for name in imported(file, root):
            found.setdefault(name, set()).add(str(file.relative_to(root)))
    return found


def third_party(folder: Path, root: Path = PROJECT) -> set[str]:
    top = {name.split(".")[0] for name in imports_below(folder, root)}
    return top - set(sys.stdlib_module_names) - {root.name}


def test_modeling_imports_pytorch_and_scipy_only():
    found = imports_below(PROJECT / "modeling")
    assert found.pop("timm") == {"modeling/timm_backbone.py"}  # a late import
    assert third_party(PROJECT / "modeling") - {"timm"} == {"torch", "torchvision", "scipy", "numpy", "ms_deform_attn"}


@pytest.mark.parametrize("part", ["modeling", "training", "evaluation", "data"])
def test_no_config_key_below_config(part):
    """Neither code nor prose mentions a config; `config/` adds keys to messages."""
    pattern = re.compile(r"\b(?:cfg|CfgNode|(?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST)\.[A-Z]\w*)\b")
    found = {
        str(path.relative_to(PROJECT)): names
        for path in sorted((PROJECT / part).rglob("*.py"))
        if (names := pattern.findall(path.read_text()))
    }
    assert not found


@pytest.mark.parametrize("part", ["cli", "model_zoo.py", "export", "report", "serve", "inference", "standalone"])
def test_no_config_value_is_read_above_config(part):
    """These parts pass a cfg to functions of `config/`, but do not read its keys."""
    path = PROJECT / part
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    found = {file.name: names for file in files if (names := re.findall(r"\bcfg(?:\.[A-Z]\w*|\[)", file.read_text()))}
    assert not found


def test_the_op_imports_torch_only():
    assert third_party(OPS, OPS) == {"torch"}


# Simulates a machine without some packages.
_HIDE = """
import sys
class Hiding:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {hidden!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import projects_deformable_detr as project
print(*("projects_deformable_detr.detectron2_plugin", "detectron2", "lightning") & sys.modules.keys())
"""


def run_python(code: str, hidden: Collection[str] = ()) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process. If packages are hidden, it imports the project and prints the optional modules."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(OPS.parent), str(PROJECT.parent)))}
    command = [sys.executable, "-c", (_HIDE.format(hidden=hidden) if hidden else "") + code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_without_detectron2():
    """Torch is imported on first use, Lightning when its engine runs."""
    code = "from projects_deformable_detr.engine import choose_engine\n"
    code += "print(choose_engine().name, 'torch' in sys.modules)\n"
    code += "print(type(project.get_cfg()).__module__, *{'torch', 'lightning'} & sys.modules.keys())"
    result = run_python(code, {"detectron2"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["", "standalone False", "projects_deformable_detr.standalone.config torch"]


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("--help", "usage: deformable-detr"),
        ("info", "deformable_detr_r50"),
        ("convert-data DATA DATA/out.json", "DATA/out.json: 1 images, 1 objects, 1 classes"),
    ],
)
def test_commands_import_neither_torch_nor_detectron2_unless_needed(command, start, tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "classes.txt").write_text("cell")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    command, start = (text.replace("DATA", str(tmp_path)) for text in (command, start))
    code = f"import sys; sys.argv = ['deformable-detr', *{command.split()!r}]\n"
    code += "import projects_deformable_detr.cli.main as cli\ntry: cli.console()\nexcept SystemExit: pass\n"
    code += "print('imported:', *{'torch', 'detectron2', 'lightning'} & sys.modules.keys())"
    result = run_python(code)
    assert result.stdout.startswith(start), result.stderr
    assert result.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["deformable-detr", "train"], "import projects_deformable_detr.cli.main as cli; sys.exit(cli.console())"),
        (
            ["train_net.py"],
            f"import runpy; runpy.run_path({str(PROJECT.parent / 'train_net.py')!r}, run_name='__main__')",
        ),
    ],
)
def test_commands_without_the_operator_print_one_message(arguments, start):
    hide = _HIDE.partition("import projects")[0].format(hidden={"ms_deform_attn", "detectron2"})
    result = run_python(f"{hide}\nsys.argv = {arguments}\n{start}")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith(f"{arguments[0]}"), result.stderr
    assert "requires the package ms_deform_attn, which is not installed: run pip install ./ops" in result.stderr


def test_without_lightning():
    """Config, model and criterion need no engine. Imports print nothing."""
    code = "from projects_deformable_detr import Detector\n"
    code += "cfg = project.get_cfg('standalone'); cfg.MODEL.DETR.NUM_CLASSES = 3\n"
    result = run_python(code + "project.build_detector(cfg), project.build_criterion(cfg)", {"lightning"})
    assert result.returncode == 0 and not result.stderr, result.stderr
    loaded = {"projects_deformable_detr.detectron2_plugin", "detectron2"}
    assert set(result.stdout.split()) == (loaded if engine.is_installed("detectron2") else set())


def test_a_folder_without_init_is_not_a_package(tmp_path, monkeypatch):
    """An example is a clone of Detectron2's repository in the working directory."""
    (tmp_path / "some_cloned_library").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("some_cloned_library") is not None
    assert not engine.is_installed("some_cloned_library")
    assert not engine.is_installed("no_such_library")
    assert engine.is_installed("torch")


@pytest.mark.parametrize(
    ("installed", "wanted", "name"),
    [
        ({"detectron2", "lightning"}, "auto", "detectron2"),
        ({"detectron2", "lightning"}, "standalone", "standalone"),
        ({"detectron2"}, "auto", "detectron2"),
        ({"lightning"}, "auto", "standalone"),
    ],
)
def test_selected_engine(monkeypatch, installed, wanted, name):
    monkeypatch.setattr(engine, "is_installed", installed.__contains__)
    choice = engine.choose_engine(wanted)
    assert choice.name == name and choice.reason


@pytest.mark.parametrize(
    ("installed", "wanted", "named"),
    [
        (set(), "auto", "lightning"),
        ({"detectron2"}, "standalone", "lightning"),
        ({"lightning"}, "detectron2", "requires detectron2, which is not installed"),
        ({"detectron2", "lightning"}, "torch", "unknown engine 'torch': choose one of auto, detectron2, standalone"),
    ],
)
def test_unavailable_engines(monkeypatch, installed, wanted, named):
    monkeypatch.setattr(engine, "is_installed", installed.__contains__)
    with pytest.raises(UserError, match=named):
        engine.check_can_train(engine.choose_engine(wanted))


@pytest.mark.skipif(engine.is_installed("detectron2"), reason="Detectron2 is installed")
def test_run_without_detectron2_is_one_line() -> None:
    command = [sys.executable, "-m", "projects_deformable_detr.detectron2_plugin.run", "script.py"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (2, "run: requires the package detectron2, which is not installed\n")

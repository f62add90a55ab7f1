"""Source distributions and wheels of the detector and the operator, and their installation outside the checkout."""

import ast
import email
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from projects_deformable_detr import model_zoo

ROOT = Path(__file__).resolve().parents[1]
IGNORED = shutil.ignore_patterns("*.so", "__pycache__", "build", "dist", "*.egg-info")
PLATFORM_VARIABLES = ("CXX", "FORCE_CUDA", "MS_DEFORM_ATTN_REQUIRE", "PYTHONPATH")
needs_setuptools = pytest.mark.skipif(
    importlib.util.find_spec("setuptools.command.bdist_wheel") is None, reason="needs setuptools >= 77"
)
pytestmark = needs_setuptools


def build(kind: str, source: Path, target: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Builds a "wheel" or "sdist" with the backend of pyproject.toml, without isolation."""
    backend = "build_backend" if (source / "build_backend.py").exists() else "setuptools.build_meta"
    target.mkdir(exist_ok=True)
    code = f"import sys; sys.path.insert(0, '.'); import {backend} as b; b.build_{kind}(sys.argv[1])"
    environment = {key: value for key, value in os.environ.items() if key not in PLATFORM_VARIABLES} | variables
    command = [sys.executable, "-c", code, str(target)]
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=900)


def unpack(folder: Path) -> Path:
    """Unpacks the only source distribution in a folder."""
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Unpacked source distributions, built from copies of the folders."""
    folder, unpacked = tmp_path_factory.mktemp("sources"), {}
    shutil.copytree(ROOT / "ops", folder / "ops", ignore=IGNORED)
    (folder / "ops/ms_deform_attn/_C.abi3.so").write_bytes(b"stale")
    (folder / "detector").mkdir()
    for name in ("projects_deformable_detr", "configs"):
        shutil.copytree(ROOT / name, folder / "detector" / name, ignore=IGNORED)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "train_net.py"):
        shutil.copy(ROOT / name, folder / "detector")
    for name in ("ops", "detector"):
        result = build("sdist", folder / name, folder / f"{name}-sdist")
        assert result.returncode == 0, result.stderr
        assert "deprecat" not in result.stderr.lower()
        unpacked[name] = unpack(folder / f"{name}-sdist")
    return unpacked


@pytest.fixture(scope="module")
def wheels(sources, tmp_path_factory) -> dict[str, Path]:
    """Wheels built from the source distributions, without a compiler."""
    folder, found = tmp_path_factory.mktemp("wheels"), {}
    for name, source in sources.items():
        result = build("wheel", source, folder / name, CC="/bin/false", CXX="/bin/false")
        assert result.returncode == 0, result.stderr
        (found[name],) = (folder / name).glob("*.whl")
    return found


def test_source_distribution_of_the_operator(sources):
    files = {str(path.relative_to(sources["ops"])) for path in sources["ops"].rglob("*") if path.is_file()}
    checkout = {str(path.relative_to(ROOT / "ops")) for path in (ROOT / "ops/csrc").rglob("*.*")}
    assert files >= checkout | {"LICENSE", "README.md", "build_op.py", "build_backend.py", "setup.py", "pyproject.toml"}
    assert not any(name.endswith(".so") for name in files)  # a stale library would replace the compiled one


def test_license_of_the_operator():
    assert (ROOT / "ops/LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_imported_packages_are_declared():
    """Other packages are those that Detectron2 needs, and backbones, which users select by name."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parts = ("standalone", "lvis", "track", "export", "report", "serve")
    extras = (project["optional-dependencies"][name] for name in parts)
    declared = {re.split("[>=<]", item)[0].replace("-", "_") for item in [*project["dependencies"], *sum(extras, [])]}
    names = {"projects_deformable_detr_ops": "ms_deform_attn", "pillow": "PIL", "pyyaml": "yaml",
             "opencv_python_headless": "cv2"}  # fmt: skip
    imported = set()
    for path in (ROOT / "projects_deformable_detr").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    known = {names.get(name, name) for name in declared} | set(sys.stdlib_module_names)
    assert imported - known - {"projects_deformable_detr"} == {"cityscapesscripts", "detectron2", "omegaconf", "timm"}


def test_wheel_without_a_compiler_is_pure(wheels):
    files = contents(wheels["ops"])
    assert wheels["ops"].name.endswith("-py3-none-any.whl")
    assert "ms_deform_attn/py.typed" in files and not any(name.endswith(".so") for name in files)
    assert any(name.endswith("/LICENSE") for name in files)


def test_a_required_library_is_never_omitted(sources, tmp_path):
    result = build("wheel", sources["ops"], tmp_path / "wheels", CXX="/bin/false", MS_DEFORM_ATTN_REQUIRE="1")
    assert result.returncode and not list((tmp_path / "wheels").iterdir())
    assert "no working C++17 compiler (/bin/false)" in result.stderr


def test_wheel_of_the_detector(wheels):
    files = contents(wheels["detector"])
    assert wheels["detector"].name.endswith("-py3-none-any.whl") and wheels["detector"].stat().st_size < 2_000_000
    assert {name.split("/")[0].partition("-")[0] for name in files} == {"projects_deformable_detr"}
    packaged = {name.partition("/configs/")[2] for name in files} - {""}
    configs = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "configs/lazy").glob("*.py")]
    assert packaged == {path.relative_to(ROOT / "configs").as_posix() for path in configs}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "projects_deformable_detr/serve/page").iterdir()}
    others = ("inference/attention.js", "inference/explanation.html", "report/template.html")
    pages |= {f"projects_deformable_detr/{name}" for name in others}
    assert len(pages) > len(others) and pages <= files.keys()
    info = next(name.partition("/")[0] for name in files if ".dist-info/" in name)
    assert f"{info}/licenses/LICENSE" in files
    metadata = email.message_from_bytes(files[f"{info}/METADATA"])
    assert any(item.startswith("projects-deformable-detr-ops") for item in metadata.get_all("Requires-Dist"))


@pytest.fixture
def build_op(monkeypatch):
    """The module ops/build_op.py."""
    monkeypatch.syspath_prepend(ROOT / "ops")
    for name in ("build_op", "build_backend"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import build_op

    return build_op


@pytest.mark.parametrize("has_cuda", [False, True])
def test_cuda_is_built_if_gpu_nvcc_and_torch_have_it(build_op, tmp_path, monkeypatch, has_cuda):
    nvcc, library = tmp_path / "bin/nvcc", tmp_path / "torch/lib/libtorch_cuda.so"
    smi = nvcc.with_name("nvidia-smi")
    for path in (nvcc, smi, library.with_name("libtorch_cpu.so"), *([library] if has_cuda else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(nvcc.parent))
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    assert build_op.find_nvcc(tmp_path / "torch") == (str(nvcc) if has_cuda else None)
    monkeypatch.setenv("FORCE_CUDA", "0")
    assert build_op.find_nvcc(tmp_path / "torch") is None
    monkeypatch.setenv("FORCE_CUDA", "1")
    if has_cuda:
        assert build_op.find_nvcc(tmp_path / "torch") == str(nvcc)
        smi.unlink()
        assert build_op.find_nvcc(tmp_path / "torch") == str(nvcc)
        monkeypatch.delenv("FORCE_CUDA")
        assert build_op.find_nvcc(tmp_path / "torch") is None
    else:
        with pytest.raises(RuntimeError, match="FORCE_CUDA=1 is set but the torch in .* has no CUDA"):
            build_op.find_nvcc(tmp_path / "torch")


@pytest.mark.parametrize("is_installed", [True, False])
def test_torch_is_a_build_requirement_where_none_is_installed(build_op, monkeypatch, is_installed):
    import build_backend

    monkeypatch.chdir(ROOT / "ops")
    monkeypatch.setattr(build_backend, "find_torch", lambda: ROOT if is_installed else None)
    monkeypatch.setattr(build_backend.build_meta, "get_requires_for_build_wheel", lambda settings: ["other"])
    assert build_backend.get_requires_for_build_wheel() == ["other", *([] if is_installed else ["torch>=2.11"])]


class Environment:
    """A virtual environment with installed wheels; other packages are those of the running Python."""

    def __init__(self, folder: Path, wheels: list[Path]) -> None:
        self.folder, self.bin = folder, folder / "env/bin"
        venv.create(folder / "env", with_pip=False)
        python = ["-m", "pip", "--python", str(self.bin / "python"), "install", "-q", "--no-deps", "--no-index"]
        self.check(sys.executable, *python, *map(str, wheels))
        # .pth files within these folders, such as those of editable installations, are not read.
        packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (site,) = (folder / "env/lib").glob("python*/site-packages")
        (site / "other.pth").write_text("\n".join(packages))

    def check(self, program: str | Path, *arguments: str) -> str:
        """Runs a program of the environment, outside the checkout and without a compiler; returns its output."""
        variables = {key: value for key, value in os.environ.items() if key not in PLATFORM_VARIABLES}
        variables |= {"PATH": str(self.bin), "OMP_NUM_THREADS": "1"}
        command = [str(self.bin / program), *arguments]
        result = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        return result.stdout


def check_installation(environment: Environment) -> None:
    """Uses every part of an installation: operator, configs by name, data, training, prediction."""
    code = "import projects_deformable_detr as p, ms_deform_attn as o; print(p.__file__, o.__file__)"
    code += "; from projects_deformable_detr import model_zoo as z; print(len(z.names())); z.get_config('quickstart')"
    lines = environment.check("python", "-c", code).split()
    assert all(Path(path).is_relative_to(environment.folder) for path in lines[:2])
    assert int(lines[2]) == len(model_zoo.names())
    assert "train" in environment.check("deformable-detr", "--help")
    environment.check("python", "-m", "projects_deformable_detr", "--version")
    shapes = ["shapes", "--output", "datasets/shapes", "--train", "8", "--val", "2", "--size", "64"]
    environment.check("deformable-detr", *shapes)
    options = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    train = ["train", "--engine", "standalone", "--config-file", "quickstart", "--output", "out"]
    environment.check("deformable-detr", *train, *options)
    results = json.loads((environment.folder / "out/inference/coco_instances_results.json").read_text())
    assert {result["image_id"] for result in results} and (environment.folder / "out/model_final.pth").is_file()
    predict = "from projects_deformable_detr import Detector; d = Detector.load('out/model_final.pth', device='cpu')"
    predict += "; import pathlib; print(len(d(next(pathlib.Path('datasets/shapes').rglob('*.png'))).scores))"
    assert int(environment.check("python", "-c", predict)) >= 0


def test_installation_outside_the_checkout(wheels, tmp_path):
    check_installation(Environment(tmp_path, list(wheels.values())))


@pytest.mark.slow
def test_installation_with_the_compiled_operator(sources, wheels, tmp_path):
    result = build("wheel", sources["ops"], tmp_path / "wheel", FORCE_CUDA="0", MS_DEFORM_ATTN_REQUIRE="1")
    assert result.returncode == 0, result.stderr
    (wheel,) = (tmp_path / "wheel").iterdir()
    assert "-cp310-abi3-linux" in wheel.name and "ms_deform_attn/_C.abi3.so" in contents(wheel)
    environment = Environment(tmp_path, [wheel, wheels["detector"]])
    assert "CPU implementation: compiled" in environment.check("python", "-m", "ms_deform_attn")
    check_installation(environment)

"""Names that Detectron2's main branch imports from inside Facebook."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="the real Detectron2 is not installed")

from projects_deformable_detr.detectron2_plugin.lent_names import numpy_names


def run(code, folder):
    script = folder / "script.py"
    script.write_text(code)
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=folder)


def test_a_lent_module_is_the_public_one(tmp_path):
    pytest.importorskip("cityscapesscripts")
    code = (
        "import projects_deformable_detr\n"
        "import deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels as lent\n"
        "from deeplearning.projects.cityscapesApi.cityscapesscripts.evaluation import instance\n"
        "import cityscapesscripts.helpers.labels as public\n"
        "assert lent is public and public.__spec__.name == 'cityscapesscripts.helpers.labels'\n"
        "assert instance.__name__ == 'cityscapesscripts.evaluation.instance'\n"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_demos_predictor_is_the_file_beside_it(tmp_path):
    (tmp_path / "predictor.py").write_text("VisualizationDemo = 'found'\n")
    code = (
        "import projects_deformable_detr\n"
        "from vision.fair.detectron2.demo.predictor import VisualizationDemo\n"
        "print(VisualizationDemo)\n"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0 and done.stdout.split() == ["found"], done.stderr


def test_what_is_really_there_keeps_its_name_and_what_is_not_stays_missing(tmp_path):
    (tmp_path / "deeplearning").mkdir()
    (tmp_path / "deeplearning/__init__.py").write_text("OWN = True\n")
    code = (
        "import projects_deformable_detr\n"
        "import deeplearning\n"
        "assert deeplearning.OWN\n"
        "for name in ('deeplearning.projects', 'vision.fair.other', 'vision.fair.detectron2.demo.predictor'):\n"
        "    try:\n"
        "        __import__(name)\n"
        "    except ModuleNotFoundError:\n"
        "        continue\n"
        "    raise SystemExit(name)\n"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_package_that_comes_later_keeps_its_name(tmp_path):
    (tmp_path / "late/vision").mkdir(parents=True)
    (tmp_path / "late/vision/__init__.py").write_text("OWN = True\n")
    (tmp_path / "late/vision/models.py").write_text("OWN = True\n")
    (tmp_path / "predictor.py").write_text("")
    code = (
        "import projects_deformable_detr, sys\n"
        "sys.path.insert(0, 'late')\n"
        "import vision, vision.models\n"
        "assert vision.OWN and vision.models.OWN\n"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_without_the_public_module_nothing_is_lent(tmp_path):
    code = (
        "import projects_deformable_detr, importlib.util\n"
        "assert importlib.util.find_spec('vision') is None\n"  # there is no predictor.py
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_numpys_old_names_are_there_for_a_while_only():
    had = hasattr(np, "float")
    with numpy_names():
        assert np.zeros(1, np.float).dtype == np.float64 and np.in1d([[1, 2]], [2]).tolist()[-1]
    assert hasattr(np, "float") is had

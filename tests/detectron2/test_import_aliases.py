"""Modules under the internal names by which Detectron2's main branch imports them, and NumPy's removed names."""

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from projects_deformable_detr.detectron2_plugin.patches import applied

INSTALL = "from projects_deformable_detr.detectron2_plugin import import_aliases; import_aliases.install()"


@pytest.fixture
def run(python, tmp_path):
    """``run(line…)`` runs a script in the test's folder and returns the words that it has printed."""

    def call(*lines):
        (tmp_path / "script.py").write_text("\n".join(["import sys; sys.path.insert(0, '')", *lines]))
        done = python("script.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return call


def test_importing_the_project_adds_no_finder(run):
    lines = "import sys, projects_deformable_detr", "print(*[type(finder).__module__ for finder in sys.meta_path])"
    assert not [name for name in run(*lines) if name.startswith("projects_deformable_detr")]


def test_an_alias_is_the_public_module(run):
    pytest.importorskip("cityscapesscripts")
    run(
        INSTALL,
        "import deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels as alias",
        "from deeplearning.projects.cityscapesApi.cityscapesscripts.evaluation import instance",
        "import cityscapesscripts.helpers.labels as public",
        "assert alias is public and public.__spec__.name == 'cityscapesscripts.helpers.labels'",
        "assert instance.__name__ == 'cityscapesscripts.evaluation.instance'",
    )


def test_the_demos_predictor_is_the_file_next_to_it(run, tmp_path):
    (tmp_path / "predictor.py").write_text("VisualizationDemo = 'found'\n")
    lines = "from vision.fair.detectron2.demo.predictor import VisualizationDemo", "print(VisualizationDemo)"
    assert run(INSTALL, *lines) == ["found"]


def test_existing_packages_and_missing_modules_are_unchanged(run, tmp_path):
    (tmp_path / "deeplearning").mkdir()
    (tmp_path / "deeplearning/__init__.py").write_text("OWN = True\n")
    run(
        INSTALL,
        "import deeplearning",
        "assert deeplearning.OWN",
        "for name in ('deeplearning.projects', 'vision.fair.other', 'vision.fair.detectron2.demo.predictor'):",
        "    try:",
        "        __import__(name)",
        "    except ModuleNotFoundError:",
        "        continue",
        "    raise SystemExit(name)",
        "import importlib.util",
        "assert importlib.util.find_spec('vision') is None",  # there is no predictor.py
    )


def test_packages_of_later_sys_path_entries_are_unchanged(run, tmp_path):
    (tmp_path / "late/vision").mkdir(parents=True)
    (tmp_path / "late/vision/__init__.py").write_text("OWN = True\n")
    (tmp_path / "late/vision/models.py").write_text("OWN = True\n")
    (tmp_path / "predictor.py").write_text("")
    lines = "import sys", "sys.path.insert(0, 'late')", "import vision, vision.models"
    run(INSTALL, *lines, "assert vision.OWN and vision.models.OWN")


def test_numpys_old_names_exist_inside_the_context_only():
    had = hasattr(np, "float")
    with applied("numpy"):
        assert np.zeros(1, np.float).dtype == np.float64 and np.in1d([[1, 2]], [2]).tolist()[-1]
    assert hasattr(np, "float") is had

"""Every public name has an entry in the API reference; the strict build of the site checks that each can be read."""

import importlib
import re
from pathlib import Path

import ms_deform_attn

import projects_deformable_detr
from projects_deformable_detr import evaluation, explain, inference, model_zoo, modeling, training

API = Path(__file__).resolve().parents[2] / "docs" / "api"
ENTRIES = {name for path in API.glob("*.md") for name in re.findall(r"^::: (\S+)", path.read_text(), re.MULTILINE)}


def public(module):
    return {f"{module.__name__}.{name}" for name in module.__all__ if name != "__version__"}


def test_public_names_have_entries():
    names = set().union(*map(public, (projects_deformable_detr, ms_deform_attn, modeling, explain)))
    of_inference = {f"{inference.__name__}.{name}" for name in {*inference.__all__} - {"Detections", "Detector"}}
    configs = {name for part in (training, evaluation) for name in public(part) if name.endswith("Config")}
    assert names | of_inference | configs | {model_zoo.__name__} <= ENTRIES


def test_entries_exist():
    for entry in ENTRIES:
        module, _, name = entry.rpartition(".")
        parent, _, owner = module.rpartition(".")
        is_class = owner[0].isupper()
        found = getattr(importlib.import_module(parent), owner) if is_class else importlib.import_module(module)
        assert hasattr(found, name), entry

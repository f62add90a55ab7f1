"""Packages the detector together with the operator of ops/. ops/setup.py packages the operator alone."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "ops"))
from build_op import extension_kwargs  # noqa: E402

# An installed package contains configs/; in a checkout model_zoo finds them beside the package.
CONFIGS = "projects_deformable_detr.configs"

setup(
    packages=[*find_packages(include=["projects_deformable_detr*"]), CONFIGS, "ms_deform_attn"],
    package_dir={"ms_deform_attn": "ops/ms_deform_attn", CONFIGS: "configs"},
    package_data={"ms_deform_attn": ["py.typed", "*.abi3.so"], CONFIGS: ["**/*.yaml", "lazy/**/*.py"]},
    **extension_kwargs(),
)

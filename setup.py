"""Packages the detector together with the operator of ops/, which its own setup.py packages alone."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "ops"))
from build_op import extension_kwargs  # noqa: E402

setup(
    packages=[*find_packages(include=["projects_deformable_detr*"]), "ms_deform_attn"],
    package_dir={"ms_deform_attn": "ops/ms_deform_attn"},
    package_data={"ms_deform_attn": ["py.typed", "*.abi3.so"]},
    **extension_kwargs(),
)

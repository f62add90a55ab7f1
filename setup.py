"""Packages the detector; the operator of ops/ is a distribution of its own. Metadata is in pyproject.toml."""

from setuptools import find_packages, setup

# An installed package contains configs/; in a checkout model_zoo finds them beside the package.
CONFIGS = "projects_deformable_detr.configs"

setup(
    packages=[*find_packages(include=["projects_deformable_detr*"]), CONFIGS],
    package_dir={CONFIGS: "configs"},
    package_data={"projects_deformable_detr": ["py.typed"], CONFIGS: ["**/*.yaml", "lazy/**/*.py"]},
)

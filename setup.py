"""Packages the detector; the operator in ops/ is a separate distribution. Metadata is in pyproject.toml."""

from setuptools import find_packages, setup

# An installed package contains configs/; in a checkout, model_zoo finds them next to the package.
CONFIGS = "projects_deformable_detr.configs"

setup(
    packages=[*find_packages(include=["projects_deformable_detr*"]), CONFIGS],
    package_dir={CONFIGS: "configs"},
    package_data={
        "projects_deformable_detr": ["py.typed", "**/*.html", "inference/*.js", "serve/page/*"],
        CONFIGS: ["**/*.yaml", "lazy/**/*.py"],
    },
)

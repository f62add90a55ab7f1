"""Build backend of pyproject.toml: setuptools, with torch as a build requirement if it is not installed.

A static requirement would download a second torch into pip's isolated environment on every build.
"""

from build_op import find_torch
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403


def _with_torch(requirements: list[str]) -> list[str]:
    return requirements if find_torch() else [*requirements, "torch>=2.11"]


def get_requires_for_build_wheel(config_settings: dict[str, str] | None = None) -> list[str]:
    """Returns the requirements of a wheel."""
    return _with_torch(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict[str, str] | None = None) -> list[str]:
    """Returns the requirements of an editable wheel."""
    return _with_torch(build_meta.get_requires_for_build_editable(config_settings))

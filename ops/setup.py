"""Packages the operator. Metadata is in pyproject.toml."""

from build_op import extension_kwargs
from setuptools import setup

setup(**extension_kwargs())

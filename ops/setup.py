"""``pip install ./ops``: the operator alone, without the detector. Metadata is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build_op import extension_kwargs

setup(**extension_kwargs())

"""Makes op_helpers importable, and the operator if it is not installed."""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
if importlib.util.find_spec("ms_deform_attn") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ops"))

"""The examples of ops/README.md run when pasted."""

import re
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parents[2] / "ops" / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=[code.splitlines()[0] for code in EXAMPLES])
def test_examples(code: str) -> None:
    if "transformers" in code:
        pytest.importorskip("transformers")
    from ms_deform_attn import compat
    from ms_deform_attn.integrations import transformers as integration

    try:
        exec(code, {})
    finally:
        integration.disable()
        for name in compat.NAMES:
            sys.modules.pop(name, None)

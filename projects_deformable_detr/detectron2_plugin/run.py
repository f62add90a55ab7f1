"""Runs a Python script as Python itself would, with the project imported first:

python -m projects_deformable_detr.detectron2_plugin.run SCRIPT [ARGUMENT …]

Processes that the script spawns import the project too: multiprocessing runs this module again in each of them, as it
runs the main script of any program.
"""

import os
import runpy
import sys
from types import ModuleType

_SCRIPT = "PROJECTS_DEFORMABLE_DETR_SCRIPT"  # spawned processes have nothing else from which to know it


def main() -> int:
    """Runs ``sys.argv[1]``, which sees itself as ``sys.argv[0]``, its folder as ``sys.path[0]`` and itself as main.

    Returns:
        The exit status: 0, or 2 if the script cannot be read. Whatever the script raises passes through.
    """
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m projects_deformable_detr.detectron2_plugin.run SCRIPT [ARGUMENT ...]", file=sys.stderr)
        return 2 if len(sys.argv) < 2 else 0
    del sys.argv[0]
    script = os.path.abspath(sys.argv[0])
    try:
        with open(script, "rb") as file:
            code = compile(file.read(), script, "exec", dont_inherit=True)
    except OSError as error:
        print(f"run: cannot read the script {sys.argv[0]}: {error.strerror}", file=sys.stderr)
        return 2
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    os.environ[_SCRIPT] = script
    module = ModuleType("__main__")
    # By the name in __spec__ multiprocessing finds this module, not the script, to run in a spawned process.
    module.__file__, module.__spec__ = script, sys.modules["__main__"].__spec__
    module.__package__ = ""  # not this module's: a script has no package
    # The second name is that of what comes back from spawned processes.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    exec(code, module.__dict__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
if __name__ == "__mp_main__":
    globals().update(runpy.run_path(os.environ[_SCRIPT], run_name="__mp_main__"))

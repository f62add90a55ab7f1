"""Runs a Python script with the project imported and `import_aliases` installed:

python -m projects_deformable_detr.detectron2_plugin.run SCRIPT [ARGUMENT …]

In spawned processes, multiprocessing imports this module as the main module, which then imports the script.
"""

import os
import runpy
import sys
from types import ModuleType

from projects_deformable_detr.detectron2_plugin import import_aliases

_SCRIPT = "PROJECTS_DEFORMABLE_DETR_SCRIPT"  # environment variable with its path, for spawned processes


def main() -> int:
    """Runs ``sys.argv[1]`` as ``__main__``, with ``sys.argv`` and ``sys.path[0]`` as Python sets them for a script.

    Returns:
        The exit status: 0, or 2 if the script cannot be read. Exceptions of the script are not caught.
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
    # multiprocessing runs the module of __spec__ in spawned processes: this one, not the script.
    module.__file__, module.__spec__ = script, sys.modules["__main__"].__spec__
    module.__package__ = ""  # a script has no package
    # Objects from spawned processes are unpickled under the second name.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    import_aliases.install()
    exec(code, module.__dict__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
if __name__ == "__mp_main__":
    import_aliases.install()
    globals().update(runpy.run_path(os.environ[_SCRIPT], run_name="__mp_main__"))

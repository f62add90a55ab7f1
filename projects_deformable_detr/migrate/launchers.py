"""How many processes the launcher of a pasted command line starts."""

import math
import re

# The official scripts, and after how many words their number of GPUs, of all machines together, follows.
LAUNCHERS = {"run_dist_launch": 1, "run_dist_slurm": 3}
_NUMBERS = ("nproc_per_node", "nnodes")


def processes(words: list[str]) -> tuple[int | None, tuple[str, ...]]:
    """Of the words before the program, a script with its number or torch's launcher: GPUs, where told, and warnings."""
    for index, word in enumerate(words):
        after = LAUNCHERS.get(word.rpartition("/")[2].removesuffix(".sh"))
        number = words[index + after] if after and index + after < len(words) else ""
        if number.isdecimal() and int(number) > 0:
            return int(number), ()
        if after:
            return None, (f"{word}: no number of GPUs follows where it is to; the config's is taken (--gpus)",)
    return _of_torch(words)


def _of_torch(words: list[str]) -> tuple[int | None, tuple[str, ...]]:
    found: dict[str, str] = {}
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, is_pair, value = word.partition("=")
        flag = name.lstrip("-").replace("-", "_")
        if name.startswith("--") and flag in _NUMBERS:
            found[flag] = value if is_pair else following
    if not found:
        return None, ()
    wrong = [f"--{flag} {value}" for flag, value in found.items() if not re.fullmatch("[1-9][0-9]*", value)]
    if wrong or "nproc_per_node" not in found:
        told = " ".join(wrong) or "--nnodes without --nproc_per_node"
        return None, (f"{told}: it tells no number of GPUs; the config's is taken (--gpus)",)
    return math.prod(int(value) for value in found.values()), ()

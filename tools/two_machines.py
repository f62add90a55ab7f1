#!/usr/bin/env python3
"""Simulates training on two machines: two network namespaces of this machine, joined by a veth pair.

    sudo python tools/two_machines.py [--engine standalone|detectron2]

Each machine trains a tiny model on the shapes data with one process, gloo and the CPU. The standalone engine is started
by torchrun, the Detectron2 engine with --num-machines, --machine-rank and --dist-url. The second machine is killed in
the middle: the first must end with an error. Then both resume from the last checkpoint. All weights after each
iteration must be equal on both machines and, with the standalone engine, equal to those of a run without interruption.

Exit status: 0; 1 if a check failed; 77 if namespaces cannot be created, with the reason.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = 77  # exit status of a skipped test, as in Automake
TRAIN = "--train"  # first argument of the processes on the machines
HASHES = "TWO_MACHINES_HASHES"  # environment variable: folder for hashes of the weights
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # reserved for documentation (RFC 5737)
CABLE = "cable"
TIMEOUT = 600.0  # seconds
ITERATIONS, PERIOD = 60, 10
CONFIG = f"""
_BASE_: {ROOT}/configs/quickstart.yaml
SEED: 1
MODEL:
  DEVICE: cpu
  DETR: {{HIDDEN_DIM: 32, DEC_LAYERS: 1, DIM_FEEDFORWARD: 32}}
  RESNETS: {{STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8, NORM: GN}}
INPUT: {{MIN_SIZE_TRAIN: [64]}}
DATASETS: {{TEST: []}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{MAX_ITER: {ITERATIONS}, CHECKPOINT_PERIOD: {PERIOD}, IMS_PER_BATCH: 4, WARMUP_ITERS: 0}}
"""


def write_hash(optimizer: Optimizer, *_: Any) -> None:
    """Appends iteration and hash of all trained weights to the file of this process; called after each step."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().numpy().tobytes())
    iteration = int(optimizer.state[parameters[-1]]["step"])
    with open(Path(os.environ[HASHES], os.environ["RANK"]), "a") as file:
        file.write(f"{iteration} {digest.hexdigest()}\n")


if HASHES in os.environ:  # in spawned processes as well, which import this module
    register_optimizer_step_post_hook(write_hash)


def run(command: str) -> None:
    """Runs a command without a shell; its output is part of the error."""
    process = subprocess.run(command.split(), capture_output=True, text=True)
    if process.returncode:
        raise OSError(f"{command}: {process.stderr.strip()}")


@contextmanager
def namespaces() -> Iterator[list[str]]:
    """Creates two connected network namespaces and returns their names.

    Raises:
        OSError: if this process must not create them.
    """
    names = [f"machine{rank}-{os.getpid()}" for rank in range(2)]
    try:
        for name in names:
            run(f"ip netns add {name}")
        run(f"ip -n {names[0]} link add {CABLE} type veth peer name {CABLE} netns {names[1]}")
        for name, address in zip(names, ADDRESSES, strict=True):
            run(f"ip -n {name} address add {address}/24 dev {CABLE}")
            run(f"ip -n {name} link set {CABLE} up")
            run(f"ip -n {name} link set lo up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)


class Job:
    """One process on each machine, which run the same training.

    Args:
        engine: engine of the training.
        machines: names of the network namespaces.
        work: folder of the config, the data and the run.
        name: name of the job's files.
        flags: arguments for ``train_net.py``.
    """

    def __init__(self, engine: str, machines: list[str], work: Path, name: str, *flags: str) -> None:
        self.machines = machines
        self.hashes = work / f"{name}-hashes"
        self.hashes.mkdir()
        self.logs = [work / f"{name}-{rank}.log" for rank in range(2)]
        own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": CABLE, HASHES: str(self.hashes)}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "ops"), os.environ.get("PYTHONPATH", "")])
        own |= {"DETECTRON2_DATASETS": str(work), "PYTHONPATH": paths}
        train = [__file__, TRAIN, "--engine", engine, "--config-file", str(work / "config.yaml"), *flags]
        self.processes = []
        for rank, log in enumerate(self.logs):
            command = [sys.executable, *train]
            if engine == "standalone":
                launcher = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
                launcher += [f"--rdzv-endpoint={ADDRESSES[0]}:29400", f"--local-addr={ADDRESSES[rank]}"]
                # torchrun compares the endpoint with the name of the host, which is the same in both namespaces.
                launcher.append(f"--rdzv-conf=is_host={rank == 0}")
                command = [sys.executable, "-m", *launcher, *train]
            else:
                command += ["--num-machines", "2", "--machine-rank", str(rank)]
                command += ["--dist-url", f"tcp://{ADDRESSES[0]}:29500"]
            command += ["OUTPUT_DIR", str(work / "output")]
            with log.open("w") as file:
                process = subprocess.Popen(
                    ["ip", "netns", "exec", machines[rank], *command], env=os.environ | own, stdout=file, stderr=file
                )
            self.processes.append(process)

    def read_hashes(self, rank: int) -> dict[int, str]:
        """Returns the hash of the weights after each iteration on a machine."""
        path = self.hashes / str(rank)
        lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last line may be incomplete
        return {int(iteration): digest for iteration, digest in map(str.split, lines)}

    def kill(self, rank: int) -> None:
        """Kills all processes on a machine."""
        found = subprocess.run(["ip", "netns", "pids", self.machines[rank]], capture_output=True, text=True)
        for pid in map(int, found.stdout.split()):
            os.kill(pid, signal.SIGKILL)

    def wait(self) -> list[int]:
        """Waits for both machines and returns their exit statuses; -9 for one that did not end in time."""
        deadline = time.monotonic() + TIMEOUT
        for rank, process in enumerate(self.processes):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill(rank)
                process.wait()
        return [process.returncode for process in self.processes]


def check(condition: bool, message: str, *jobs: Job) -> None:
    """Prints the message of a check; ends the script with the logs of the jobs if it failed."""
    print(f"{'ok' if condition else 'FAILED'}: {message}", flush=True)
    if not condition:
        for path in [path for job in jobs for path in job.logs]:
            print(f"--- {path.name}\n{path.read_text()[-5000:]}")
        sys.exit(1)


def complete(engine: str, machines: list[str], work: Path, name: str, *flags: str) -> Job:
    """Trains to the end and checks exit statuses, number of iterations and weights."""
    job = Job(engine, machines, work, name, *flags)
    check(job.wait() == [0, 0], f"{engine}: the {name} run ended on both machines", job)
    first, second = job.read_hashes(0), job.read_hashes(1)
    check(max(first) == max(second) == ITERATIONS, f"{engine}: both machines trained {ITERATIONS} iterations", job)
    check(first == second, f"{engine}: weights are equal on both machines in iterations {min(first)}-{max(first)}", job)
    return job


def rehearse(engine: str, machines: list[str], work: Path) -> None:
    """Trains on two machines, kills one, resumes, and compares."""
    if engine == "standalone":
        expected = complete(engine, machines, work, "uninterrupted").read_hashes(0)
    job = Job(engine, machines, work, "interrupted", "--overwrite")
    deadline = time.monotonic() + TIMEOUT
    while not any(iteration > 1.5 * PERIOD for iteration in job.read_hashes(0)):
        if time.monotonic() > deadline or any(process.poll() is not None for process in job.processes):
            check(False, f"{engine}: the run did not reach iteration {1.5 * PERIOD:.0f}", job)
        time.sleep(0.05)
    job.kill(1)
    start = time.monotonic()
    status = job.wait()[0]
    seconds = time.monotonic() - start
    check(max(job.read_hashes(0)) < ITERATIONS, f"{engine}: the second machine was killed in the middle", job)
    check(status not in (0, -9), f"{engine}: the first machine ended {seconds:.0f} s later with status {status}", job)
    has_message = "connection to another process" in job.logs[0].read_text()
    check(has_message, f"{engine}: its error names the lost connection", job)
    resumed = complete(engine, machines, work, "resumed", "--resume").read_hashes(0)
    check(min(resumed) > PERIOD, f"{engine}: the run was resumed at iteration {min(resumed)}")
    if engine == "standalone":
        equal = all(expected[iteration] == digest for iteration, digest in resumed.items())
        check(equal, f"{engine}: weights of the resumed run are equal to those of the uninterrupted run")


def main() -> int:
    """Runs the rehearsal and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", choices=("standalone", "detectron2"), help="default: both")
    args = parser.parse_args()
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("ip") is None:
        print("Skipped: network namespaces require root and the command ip (package iproute2)")
        return SKIPPED
    from projects_deformable_detr.shapes.dataset import generate

    with ExitStack() as stack:
        try:
            machines = stack.enter_context(namespaces())
        except OSError as error:
            print(f"Skipped: {error}")
            return SKIPPED
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for engine in args.engine or ("standalone", "detectron2"):
            work = Path(folder, engine)
            generate(work / "shapes", num_train=16, num_val=1, size=64)
            (work / "config.yaml").write_text(CONFIG)
            rehearse(engine, machines, work)
    return 0


def train() -> None:
    """Trains in a process of a machine, as ``train_net.py`` does."""
    from projects_deformable_detr.cli import train
    from projects_deformable_detr.cli.arguments import argument_parser

    train.run(argument_parser().parse_args(sys.argv[2:]))


if __name__ == "__main__":
    if sys.argv[1:2] == [TRAIN]:
        from projects_deformable_detr.errors import run_command

        sys.exit(run_command("train_net.py", train))
    sys.exit(main())

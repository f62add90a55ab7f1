"""Fully sharded data parallel training (FSDP2), with the checkpoints of other runs."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only


class ShardedStrategy(DDPStrategy):
    """Shards parameters, gradients and optimizer state of the detector over all processes (``SOLVER.STRATEGY fsdp``).

    States of the model and the optimizer have full tensors in the first process, so that checkpoints do not depend on
    the strategy and the number of processes. All processes must call the functions that return them. Lightning's
    ``ModelParallelStrategy`` supports neither ``WeightAveraging`` nor the project's checkpoints.
    """

    def setup(self, trainer: L.Trainer) -> None:
        """Sets up the model; evaluations keep the shards of an earlier training, which DDP would broadcast."""
        if trainer.state.fn != TrainerFn.FITTING and is_sharded(self.lightning_module):
            Strategy.setup(self, trainer)
        else:
            super().setup(trainer)

    def configure_ddp(self) -> None:
        """Shards the detector after all processes have received the weights of rank 0."""
        assert self.model is not None
        for tensor in chain(self.model.parameters(), self.model.buffers()):
            tensor.data = tensor.data.contiguous()  # required by broadcasts
            distributed.broadcast(tensor.detach(), 0)
        self.model = self._setup_model(self.model)

    def _setup_model(self, model: nn.Module) -> Any:
        if not is_sharded(model):
            shard(model.detector)
        return model

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns the state with full tensors in the first process, and None in their places in others."""
        state: dict[str, Any] = tree_map_only(DTensor, _full_tensor, super().optimizer_state(optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads a state with full tensors."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            ids = [index for group in state["param_groups"] for index in group["params"]]
            for index, parameter in zip(ids, parameters, strict=True):
                values = state["state"].get(index, {})
                values |= {
                    name: distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
                    for name, value in values.items()
                    if isinstance(value, Tensor) and value.shape == parameter.shape
                }
        super().load_optimizer_state_dict(checkpoint)


def shard(detector: Any) -> None:
    """Shards a detector, in units of the layers of encoder and decoder and of all other parameters.

    Its state dict has full tensors in the first process, and lacks them in others.
    """
    for parameter in detector.parameters():
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(next(detector.parameters()).device.type, (distributed.get_world_size(),))
    for part in (detector.encoder, detector.decoder):
        for layer in getattr(part, "layers", ()):
            fully_shard(layer, mesh=mesh)
    # Masks are computed after the forward pass, with parameters of the last unit.
    fully_shard(detector, mesh=mesh, reshard_after_forward=False)
    detector.register_state_dict_post_hook(_gather)


def _gather(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    for name, value in list(state.items()):
        if name.startswith(prefix) and isinstance(value, DTensor):
            full = _full_tensor(value)
            if full is None:
                del state[name]
            else:
                state[name] = full


def _full_tensor(value: DTensor) -> Tensor | None:
    """Gathers a tensor on the CPU of the first process, so that no device holds more than one full tensor; None in
    other processes.
    """
    full = value.full_tensor()
    return full.cpu() if distributed.get_rank() == 0 else None


def is_sharded(module: Any) -> bool:
    """Returns whether the detector of a module is sharded."""
    return isinstance(module.detector, FSDPModule)


def by_type(average: Callable[..., None]) -> Callable[..., None]:
    """Returns a function that averages sharded parameters and buffers, which cannot be in one list, separately."""

    def average_by_type(averages: Sequence[Tensor], values: Sequence[Tensor], count: Any) -> None:
        for kind in (True, False):
            pairs = [pair for pair in zip(averages, values, strict=True) if isinstance(pair[0], DTensor) is kind]
            if pairs:
                average(*zip(*pairs, strict=True), count)

    return average_by_type


def gather_parameters(detector: nn.Module) -> None:
    """Gathers the parameters of a sharded detector until `release_parameters`, so that processes can evaluate different
    numbers of batches.
    """
    for module in detector.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def release_parameters(detector: nn.Module) -> None:
    """Releases the gathered parameters. Idempotent."""
    for module in detector.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(module is not detector, recurse=False)
            module.reshard()

"""A teacher: the running mean of a network's weights, whose predictions are soft labels.

Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from daal.network import DaalNetwork, NetworkOutput


class Teacher:
    """`module` starts as a copy of the network; after its first step it is a copy again.

    Then m <- m * momentum + (1 - momentum) * w of all weights and statistics, after each step.
    """

    def __init__(self, network: DaalNetwork, momentum: float) -> None:
        self.module = deepcopy(network).eval()
        self.momentum = momentum
        self.num_steps = 0  # that it has followed; on the host, so that nobody waits for it

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor, num_source: int) -> NetworkOutput:
        output: NetworkOutput = self.module(images_BCHW, num_source)
        return output

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Take a step of the network into the mean, by one operation on all tensors."""
        means, own = _tensors_of(self.module), _tensors_of(network)
        if self.num_steps == 0:
            torch._foreach_copy_(means, own)
        else:
            torch._foreach_lerp_(means, own, 1 - self.momentum)
        self.num_steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Named as torch's AveragedModel, which release 0.1 used, names them."""
        own = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.num_steps), **own}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_dict` has given."""
        own = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        self.num_steps = int(own.pop("n_averaged"))
        self.module.load_state_dict(own)


def _tensors_of(network: nn.Module) -> list[Tensor]:
    """What has a mean; the only integers, BatchNorm's counts of batches, have none."""
    return [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]

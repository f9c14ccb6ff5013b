"""A teacher: the running mean of a network's weights, whose predictions are soft labels.

Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from daal.nn.network import DaalNetwork, NetworkOutput


class Teacher:
    """`module` starts as a copy of the network; after its first step it is a copy again.

    Then m <- m * momentum + (1 - momentum) * w of all weights and statistics, after each step.
    """

    def __init__(self, network: DaalNetwork, momentum: float) -> None:
        self.module = deepcopy(network).eval()
        self.momentum = momentum
        self.is_mean = False  # no count of steps: a captured step adds to nothing on the host

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor, num_source: int) -> NetworkOutput:
        output: NetworkOutput = self.module(images_BCHW, num_source)
        return output

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Take a step of the network into the mean, by one operation on all tensors."""
        means, own = _tensors_of(self.module), _tensors_of(network)
        if self.is_mean:
            torch._foreach_lerp_(means, own, 1 - self.momentum)
        else:
            torch._foreach_copy_(means, own)
        self.is_mean = True

    def state_dict(self) -> dict[str, Tensor]:
        """Named as torch's AveragedModel, which release 0.1 used, names them.

        Its count of steps is 0 or 1 here: what is read of it is whether there was one.
        """
        own = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(int(self.is_mean)), **own}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_dict` has given."""
        own = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        self.is_mean = bool(own.pop("n_averaged"))
        self.module.load_state_dict(own)


def _tensors_of(network: nn.Module) -> list[Tensor]:
    """What has a mean; the only integers, BatchNorm's counts of batches, have none."""
    return [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]

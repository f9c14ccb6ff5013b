"""The compiler traces each recipe's network on fake CUDA tensors as one graph.

What Inductor makes of it needs a GPU.
"""

from unittest.mock import patch

import pytest
import torch
from planted import planted
from test_training_step import SMALL, config_of

from benchmarks.fake_cuda import CUDA
from benchmarks.fake_steps import FakeFit, process
from daal.nn.network import DaalNetwork
from daal.precision import mixed_precision


def num_graphs(recipe):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    try:
        with process(config_of(recipe, *SMALL)):
            fit = FakeFit(config_of(recipe, *SMALL), "adapt")
            (part,) = fit.on_host(0)
            batch = fit.maker.on_device(part.to(CUDA))
            autocast = mixed_precision(CUDA, True)
            network = torch.compile(fit.state.network, backend=backend, fullgraph=True)
            # Asked, the compiler would look at the state of a GPU's random numbers.
            with autocast, patch.object(torch.cuda, "is_available", lambda: False):
                out = network(batch.images_BCHW, batch.num_source)
            assert out.shared_BC.is_cuda
    finally:
        torch._dynamo.reset()
    return len(graphs)


# The other recipes' networks are the paper's, with a head of modern's.
@pytest.mark.parametrize("recipe", ["modern", "paper", "ssg", "udap"])
def test_one_graph(recipe):
    assert num_graphs(recipe) == 1


def test_planted_bug__a_branch_on_a_value():
    branch = "self.pool(shared_BCHW if shared_BCHW.sum() > 0 else specific_BCHW)"
    with planted(DaalNetwork, "forward", "self.pool(shared_BCHW)", branch):
        with pytest.raises(torch._dynamo.exc.Unsupported):
            num_graphs("paper")

"""The gradients that M2DM writes itself, against autograd's of the plain expressions, and LEEM and M2DM compiled."""

import pytest
import torch
from loops import for_every
from torch import nn

from auxdet_d2.modeling.leem import LEEM
from auxdet_d2.modeling.m2dm import M2DM, ChannelPool, SumOfGains


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def gradients(output, inputs):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), inputs)


def test_gradients_of_pooled_channels():
    x = doubles(2, 4, 3, 5)
    ours, plain = ChannelPool.apply(x), torch.stack([x.mean(1), x.amax(1)], dim=1)
    assert torch.equal(ours, plain)
    torch.testing.assert_close(gradients(ours, [x]), gradients(plain, [x]))


def test_the_gradient_of_a_maximum_goes_to_the_first_channel_that_has_it():
    x = torch.ones(1, 3, 1, 1, requires_grad=True)
    ChannelPool.apply(x)[:, 1].sum().backward()
    assert x.grad.flatten().tolist() == [1, 0, 0]


def test_gradients_of_summed_gains():
    inputs = [doubles(2, 3, 4, 5), doubles(2, 1, 4, 5), doubles(2, 3, 1, 1)]
    x, spatial, channel = inputs
    ours, plain = SumOfGains.apply(*inputs), x * (spatial + channel)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours, inputs), gradients(plain, inputs))


class Sharpened(nn.Module):
    """LEEM as the refinement calls it."""

    def __init__(self):
        super().__init__()
        self.leem = LEEM(8, init="xavier")

    def forward(self, x, aux):
        return x + self.leem(x) * aux.mean(dim=1).sigmoid()[:, None, None, None]


@pytest.mark.slow
@for_every("build", [Sharpened, lambda: M2DM(8, 6), lambda: M2DM(8, 6, mode="spatial_channel")])
@for_every("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph_with_the_same_gradients(build, backend):
    module, x, aux = build().train(), torch.randn(2, 8, 6, 5, requires_grad=True), torch.randn(2, 6)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    torch._dynamo.reset()
    expected, actual = module(x, aux), torch.compile(module, fullgraph=True, backend=backend)(x, aux)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, wanted), gradients(expected, wanted), rtol=1e-3, atol=1e-4)


def test_channels_last_stays():
    module = M2DM(8, 6)
    x = torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    plain = x.detach().contiguous().requires_grad_()
    aux = torch.randn(2, 6)
    out = module(x, aux)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradients(out, [x]), gradients(module(plain, aux), [plain]))

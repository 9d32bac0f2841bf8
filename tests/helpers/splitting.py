"""Networks and tokens in float64 for tests of splitting over ranks."""

import torch


def double(make):
    torch.manual_seed(3)
    network = make().double()
    for parameter in network.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return network


def tokens(seed=0):
    return torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

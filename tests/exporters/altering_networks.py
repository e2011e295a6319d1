"""Networks that do more with their input than read it."""

import torch
from torch import nn


class Normalizing(nn.Module):
    """(x - 0.5) / 0.25 in place, then the mean of each channel."""

    def forward(self, x):
        x.sub_(0.5).div_(0.25)
        return x.mean((2, 3))


class Scaling(nn.Module):
    """Doubles the first channel in place, and returns its input too."""

    def forward(self, x):
        x[:, 0] = x[:, 0] * 2 + 1
        return x.mean((2, 3)), x


class Rectifying(nn.Module):
    """The ReLU of its input in place, returned as it is."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x)


class Keeping(nn.Module):
    """Holds what it was given, and what it gave in one buffer that every run fills anew."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(1, 3), persistent=False)

    def forward(self, x):
        self.seen = x
        self.last = x.mean((2, 3)) * 3
        return self.last


class Counting(nn.Module):
    """Integers, one more in place."""

    def forward(self, x):
        x += 1
        return x


ALTERING = (Normalizing, Scaling, Rectifying, Keeping)

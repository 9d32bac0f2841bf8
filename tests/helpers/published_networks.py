"""Small networks that are called as the published ones of SiT and EDM2 are."""

import math

import torch
from torch import nn


class Labels(nn.Module):
    def __init__(self, classes, width, dropout_prob=0.1):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)
        self.num_classes, self.dropout_prob = classes, dropout_prob

    def forward(self, labels):
        if self.training:
            dropped = torch.rand(len(labels), device=labels.device) < self.dropout_prob
            labels = torch.where(dropped, self.num_classes, labels)
        return self.embedding_table(labels)


class Patches(nn.Module):
    def __init__(self, size, patch, channels, width):
        super().__init__()
        self.num_patches = (size // patch) ** 2
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)


class SiT(nn.Module):
    """Has the call, the sizes and the fixed table of the published network, and one layer."""

    def __init__(self, input_size=8, patch_size=2, in_channels=4, width=16, num_classes=5):
        super().__init__()
        self.in_channels, self.patch_size = in_channels, patch_size
        self.x_embedder = Patches(input_size, patch_size, in_channels, width)
        self.y_embedder = Labels(num_classes, width)
        self.t_embedder = nn.Linear(2, width)
        number = self.x_embedder.num_patches
        self.pos_embed = nn.Parameter(torch.randn(1, number, width), requires_grad=False)
        self.out = nn.Linear(width, patch_size**2 * in_channels * 2)

    def forward(self, x, t, y):
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        time = torch.stack([torch.cos(3 * t), torch.sin(3 * t)], -1).to(x.dtype)
        h = torch.tanh(h + (self.t_embedder(time) + self.y_embedder(y))[:, None])
        side, p = x.shape[-1] // self.patch_size, self.patch_size
        h = self.out(h).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return nn.functional.pixel_shuffle(h, p).chunk(2, dim=1)[0]


class Precond(nn.Module):
    """Has the call and the preconditioning of the published network, around two layers."""

    def __init__(self, img_resolution=8, img_channels=3, label_dim=0, sigma_data=0.5):
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.label_dim, self.sigma_data = label_dim, sigma_data
        self.first = nn.Conv2d(img_channels, 8, 3, padding=1)
        self.emb = nn.Linear(1 + label_dim, 8)
        self.last = nn.Conv2d(8, img_channels, 3, padding=1)

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        x, sigma = x.float(), sigma.float().reshape(-1, 1, 1, 1)
        total = sigma**2 + self.sigma_data**2
        if self.label_dim and class_labels is None:
            class_labels = torch.zeros(1, self.label_dim, device=x.device)
        noise = sigma.flatten()[:, None].log() / 4
        given = [noise] if not self.label_dim else [noise, class_labels.expand(len(x), -1)]
        emb = self.emb(torch.cat(given, 1) * math.sqrt(2))[:, :, None, None]
        value = self.last(torch.tanh(self.first(x / total.sqrt()) + emb))
        scale = sigma * self.sigma_data / total.sqrt()
        return self.sigma_data**2 / total * x + scale * value

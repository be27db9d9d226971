"""The conv VAE in PyTorch, with its layout for convolutions on CPUs. A process of its own: see `base.Helper`."""

import json
import os
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.base import CORES, digits

BATCH = 128


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        pad, relu = nn.ZeroPad2d((0, 1, 0, 1)), nn.ReLU()
        self.convolutions = nn.Sequential(pad, nn.Conv2d(1, 32, 3, 2), relu, pad, nn.Conv2d(32, 64, 3, 2), relu)
        self.hidden, self.mean, self.log_var = nn.Linear(3136, 16), nn.Linear(16, 2), nn.Linear(16, 2)
        self.start = nn.Linear(2, 3136)
        self.transposed = nn.Sequential(
            nn.ConvTranspose2d(64, 64, 3, 2, padding=1, output_padding=1),
            relu,
            nn.ConvTranspose2d(64, 32, 3, 2, padding=1, output_padding=1),
            relu,
            nn.ConvTranspose2d(32, 1, 3, padding=1),
        )

    def forward(self, x):
        # Channels last before flattening, so that Keras' weights fit.
        h = self.convolutions(x).permute(0, 2, 3, 1).flatten(1)
        h = functional.relu(self.hidden(h))
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        h = functional.relu(self.start(z)).reshape(-1, 7, 7, 64).permute(0, 3, 1, 2)
        cost = functional.binary_cross_entropy_with_logits(self.transposed(h), x, reduction="sum") / len(x)
        return cost + 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()


def load(model, path):
    with np.load(path) as archive, torch.no_grad():
        for parameter, name in zip(model.parameters(), archive.files, strict=True):
            array = archive[name]
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            parameter.copy_(torch.from_numpy(array.copy()))


def main(n, path, variant):
    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    x = torch.from_numpy(digits().x_train[: int(n)]).permute(0, 3, 1, 2).contiguous()
    model = VAE()
    load(model, path)
    model = model.to(memory_format=torch.channels_last)
    step = torch.compile(model) if variant == "torch.compile" else model
    optimizer = torch.optim.Adam(model.parameters())
    for _ in sys.stdin:
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = step(x[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        answer = {"seconds": time.perf_counter() - start, "loss": total / len(x)}
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    # Libraries may print: what they print goes to stderr, and the answers alone to stdout.
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(*sys.argv[1:])

"""How the cost grows: five sweeps, and the exponent of each."""

import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from benchmarks import base
from benchmarks.base import QUICK, digits, images
from benchmarks.training import CONV, DENSE, trainer
from vae_utils import evaluation
from vae_utils.architectures import conv_vae, dense_vae


def best_of_three(function):
    """Seconds of the fastest of three calls after a warm-up: a machine's other work only ever adds."""
    function()
    seconds = []
    for _ in range(1 if QUICK else 3):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def dense_pass(n=10_000, batch_size=100, latent_dim=2):
    vae = dense_vae(latent_dim=latent_dim)
    vae.compile("adam", jit_compile=True, steps_per_execution=min(DENSE["steps_per_execution"], n // batch_size))
    return best_of_three(trainer(vae, images(n)[:n], batch_size))


def batch_step(batch_size):
    n = 8 * 1_024
    return dense_pass(n, batch_size) / (len(images(n)) / batch_size)


def latent_pass(latent_dim):
    return dense_pass(latent_dim=latent_dim)


def samples(num_samples):
    vae, x = dense_vae(), images(1_000)
    return best_of_three(lambda: evaluation.elbo(vae, x, num_samples))


def side(pixels):
    side = round(pixels**0.5)
    x = np.asarray(digits().x_train[:256])
    x = x.repeat(side // 28, axis=1).repeat(side // 28, axis=2)
    vae = conv_vae((side, side, 1))
    vae.compile("adam", jit_compile=CONV["jit_compile"])
    return best_of_three(trainer(vae, x, 64))


SWEEPS = {
    "images": ("dense: s per pass", (1_000, 3_000, 10_000, 30_000, 60_000), dense_pass),
    "batch size": ("dense: s per step", (32, 128, 512, 1_024), batch_step),
    "latent dimensions": ("dense: s per 10,000 images", (2, 8, 32, 64), latent_pass),
    "samples per image": ("ELBO: s per 1,000 images", (1, 4, 16, 64), samples),
    "pixels per image": ("conv: s per 256 images", (28**2, 56**2, 84**2, 112**2), side),
}


def exponent(x, y):
    """Slope in the log-log plane: 1 where the cost is proportional to x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def measure():
    found = {}
    for name, (unit, values, function) in tqdm(SWEEPS.items(), desc="  sweeps", leave=False):
        keras.utils.set_random_seed(0)
        seconds = [function(value) for value in values]
        found[name] = {"unit": unit, "x": values, "seconds": seconds, "exponent": exponent(values, seconds)}
    return found


def draw(found, path=base.FOLDER / "scaling.png"):
    figure, axes = plt.subplots(3, 2, figsize=(6.8, 8.4), layout="constrained")
    for ax, (name, sweep) in zip(axes.flat, found.items(), strict=False):
        x, y = np.array(sweep["x"]), np.array(sweep["seconds"])
        ax.loglog(x, y, "o-", color="#3f90da", label="measured")
        ax.loglog(x, y[0] * x / x[0], "--", color="#717581", label="linear from the first point")
        ax.set(xlabel=name, ylabel=sweep["unit"], title=f"exponent {sweep['exponent']:.2f}")
        ax.set_xticks(x, [f"{value:,}" for value in x], rotation=30)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False)
    axes.flat[-1].set_axis_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)

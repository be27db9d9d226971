"""Train the models that ship with vae_utils and write them with a manifest of what they reach.

Usage: train_weights.py [NAME ...], all by default. The recipe was chosen on validation digits; the test digits are
scored once, at the end.
"""

import hashlib
import json
import platform
import sys
import time
from pathlib import Path

import keras
import numpy as np

from vae_utils import architectures, evaluation
from vae_utils.datasets import load_mnist
from vae_utils.models import VAE

FOLDER = Path(architectures.__file__).parent / "weights"
HELD_OUT = 5_000  # the last of the training digits, as in the chapters

#: name: (builder, its arguments, how it is trained, seeds of which the one with the best validation loss is kept)
RECIPES = {
    "dense-2d": ("dense_vae", {}, {"batch": 200, "epochs": 50, "rate": 4e-3}, range(4)),
    "dense-20d": (
        "dense_vae",
        {"hidden": [400], "latent_dim": 20},
        {"batch": 200, "epochs": 60, "rate": 2e-3},
        range(1),
    ),
    "conv-2d": ("conv_vae", {}, {"batch": 128, "epochs": 60, "rate": 2e-3}, range(1)),
}


def train(name, digits):
    builder, arguments, recipe, seeds = RECIPES[name]
    x_train, x_val = digits.x_train[:-HELD_OUT], digits.x_train[-HELD_OUT:]
    start = time.time()
    losses, best = {}, None
    for seed in seeds:
        vae = fit(getattr(architectures, builder), arguments, recipe, seed, x_train)
        losses[seed] = score(vae, x_val)
        print(name, "seed", seed, "validation −ELBO", losses[seed], flush=True)
        best = vae if losses[seed] == min(losses.values()) else best

    path = FOLDER / f"{name}.weights.h5"
    # Not a `.keras` file, which a Keras older than this one may refuse; and a new VAE has no optimizer to save.
    VAE(best.encoder, best.decoder).save_weights(path)
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "model": {builder: arguments},
        "parameters": best.count_params(),
        "recipe": {"optimizer": "Adam, 200 steps of warm-up, cosine decay", **recipe},
        "seeds_tried": len(losses),
        "seed": min(losses, key=losses.get),
        "training_digits": len(x_train),
        "seconds": round(time.time() - start),
        "validation_negative_elbo": min(losses.values()),
        "test_negative_elbo": score(best, digits.x_test),
        "versions": {"keras": keras.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def fit(build, arguments, recipe, seed, x_train):
    keras.utils.set_random_seed(seed)
    vae = build(**arguments)
    steps = recipe["epochs"] * -(-len(x_train) // recipe["batch"])
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps - 200, warmup_target=recipe["rate"], warmup_steps=200)
    dense = build is architectures.dense_vae  # XLA speeds up matrix products on a CPU, and slows down convolutions
    vae.compile(keras.optimizers.Adam(schedule), jit_compile=dense, steps_per_execution=50 if dense else 10)
    vae.fit(x_train, batch_size=recipe["batch"], epochs=recipe["epochs"], verbose=2)
    return vae


def score(vae, x):
    """−ELBO in nats per image, ten draws of z for each, seed 0."""
    return round(float(-evaluation.elbo(vae, x, num_samples=10, seed=0).mean()), 3)


def main(names):
    digits = load_mnist()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "manifest.json"
    for name in names or RECIPES:
        entry = train(name, digits)
        manifest = json.loads(path.read_text("utf-8")) if path.exists() else {}
        manifest[name] = entry
        path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", "utf-8")
        print(name, entry["test_negative_elbo"], "nats per image on the test digits,", entry["seconds"], "s")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Our conv VAE on Keras' JAX backend. A process of its own: see `base.Helper`."""

import json
import sys
import time

import keras
import numpy as np

from benchmarks.base import digits
from vae_utils.architectures import conv_vae


def main(n, path, variant):
    assert keras.backend.backend() == "jax"
    keras.utils.set_random_seed(0)
    x = digits().x_train[: int(n)]
    vae = conv_vae()
    with np.load(path) as archive:
        for variable, name in zip(vae.trainable_variables, archive.files, strict=True):
            variable.assign(archive[name])
    vae.compile(keras.optimizers.Adam())
    for _ in sys.stdin:
        start = time.perf_counter()
        history = vae.fit(x, batch_size=128, verbose=0).history
        print(json.dumps({"seconds": time.perf_counter() - start, "loss": history["loss"][0]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Digits for all tests: real ones that need no network, MNIST where there is a copy, and arrays that pass for MNIST."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def digits():
    """Real digits that need no network."""
    from vae_utils.datasets import load_optical_digits

    return load_optical_digits()


@pytest.fixture(scope="session")
def mnist():
    """MNIST, where a copy is at hand: no test downloads it."""
    cached = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"), "datasets", "mnist.npz")
    if not os.environ.get("VAE_UTILS_DATA") and not cached.exists():
        pytest.skip("no copy of MNIST: set VAE_UTILS_DATA")
    from vae_utils.datasets import load_mnist

    return load_mnist()


def make_mnist(shapes):
    """Return arrays of MNIST's type that are not MNIST, and the digests under which they pass for it."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, shape, "uint8") for name, shape in shapes.items()}
    return arrays, {name: (hashlib.sha256(a.tobytes()).hexdigest(), a.shape) for name, a in arrays.items()}


@pytest.fixture(scope="session")
def fake_mnist():
    """As many digits as MNIST has, and their digests."""
    from vae_utils._mnist import MNIST

    return make_mnist({name: shape for name, (_, shape) in MNIST.items()})


@pytest.fixture(scope="session")
def small():
    """A few digits, and their digests."""
    return make_mnist({"x_train": (60, 28, 28), "y_train": (60,), "x_test": (10, 28, 28), "y_test": (10,)})

import os

import numpy as np
import pytest

from vae_utils.datasets import load_mnist, load_optical_digits


@pytest.fixture(scope="session")
def digits():
    """Real digits that need no network."""
    return load_optical_digits()


@pytest.fixture(scope="session")
def mnist():
    if not os.environ.get("VAE_UTILS_DATA"):
        pytest.skip("needs VAE_UTILS_DATA")
    return load_mnist()


@pytest.fixture(scope="session")
def fake_mnist(tmp_path_factory):
    """Arrays of MNIST's shapes and types that are not MNIST, and the digests under which they pass for it."""
    import hashlib

    from vae_utils.datasets import MNIST

    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, shape, "uint8") for name, (_, shape) in MNIST.items()}
    digests = {name: (hashlib.sha256(a.tobytes()).hexdigest(), a.shape) for name, a in arrays.items()}
    return arrays, digests

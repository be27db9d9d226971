"""What the faults share: small digits that pass for MNIST, and a count of the cases that each group has tried."""

import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent.parent
TRIED = Counter()

# The same cases in every run, and no folder of past ones: a failure repeats for whoever sees it.
settings.register_profile("faults", derandomize=True, deadline=None, database=None)
settings.load_profile("faults")


@pytest.fixture(scope="module")
def tried(request):
    """Count cases under the group that the test module's docstring names."""

    def count(n=1):
        TRIED[request.module.__doc__.split(":")[0]] += n

    return count


def pytest_terminal_summary(terminalreporter):
    for group, cases in TRIED.items():
        terminalreporter.write_line(f"{group}: {cases} cases tried")


def npz(arrays, compress=False):
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def small():
    """Arrays like MNIST's, but few, and the digests under which they pass for it."""
    rng = np.random.default_rng(0)
    shapes = {"x_train": (60, 28, 28), "y_train": (60,), "x_test": (10, 28, 28), "y_test": (10,)}
    arrays = {name: rng.integers(0, 256, shape, "uint8") for name, shape in shapes.items()}
    digests = {name: (hashlib.sha256(a.tobytes()).hexdigest(), a.shape) for name, a in arrays.items()}
    return arrays, digests

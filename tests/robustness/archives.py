"""The bytes of an archive of arrays, whole, before the tests damage them."""

import io

import numpy as np


def npz(arrays, compress=False):
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)
    return buffer.getvalue()

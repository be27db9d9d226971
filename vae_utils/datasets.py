"""MNIST from wherever it is, checked before it is used, and real digits for a machine that has never been online."""

import os
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np

from vae_utils import _mnist
from vae_utils._mnist import DataError
from vae_utils._validation import check_pixels

Digits = namedtuple("Digits", "x_train y_train x_test y_test name")
Digits.__doc__ = """Digits as a VAE takes them: images float32 in [0, 1] of shape `(n, 28, 28, 1)`, integer labels
of shape `(n,)`, and `name`, which says where they come from: `"mnist"` or `"optical-digits"`."""


def load_mnist(path=None, fallback=None):
    """Load MNIST, checked against its published digest whatever the source.

    It looks at `path`, then at the environment variable `VAE_UTILS_DATA`, then in Keras' cache, then downloads into
    that cache. A path may be a file (`.npz`) or a folder with `mnist.npz` or the four IDX files, gzipped or not.
    The first place that has something decides: a bad file there is an error, never skipped in silence.

    Args:
        path: Optional file or folder.
        fallback: What to do when there is no copy and no network. By default, raise; with `"optical-digits"`, say so
            and return `load_optical_digits()`.

    Returns:
        `Digits` with 60,000 training and 10,000 test digits, named `"mnist"`.

    Raises:
        DataError: If a file is missing, unreadable, or not MNIST; the file is left as it is.
        ValueError: If `fallback` is not one of the above, or `path` is no path.

    Source: LeCun, Cortes & Burges, http://yann.lecun.com/exdb/mnist/
    """
    if fallback not in (None, "optical-digits"):
        raise ValueError(f'`fallback` must be None or "optical-digits". Received: {fallback!r}')
    if not isinstance(path, (str, os.PathLike, type(None))):
        raise ValueError(f"`path` must be a file or a folder. Received: {path!r}")
    given = path or os.environ.get("VAE_UTILS_DATA")
    cached = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets" / "mnist.npz"
    if not given and not os.path.lexists(cached):
        try:
            _mnist.download(cached)
        except ConnectionError as error:
            if fallback:
                _announce_fallback(error)
                return load_optical_digits()
            raise DataError(
                f"No copy of MNIST was found, and {_mnist.URL} could not be downloaded to {cached} "
                f"({type(error).__name__}). Go online, or set VAE_UTILS_DATA to a folder that holds mnist.npz, or call "
                'load_mnist(fallback="optical-digits").'
            ) from error
    arrays = _mnist.read(Path(os.path.expanduser(given)) if given else cached)
    images = {
        name: (array[..., np.newaxis] / np.float32(255)).astype("float32", copy=False)
        for name, array in arrays.items()
        if name.startswith("x")
    }
    labels = {name: array.astype("int64") for name, array in arrays.items() if name.startswith("y")}
    return Digits(**images, **labels, name="mnist")


def load_optical_digits():
    """Load the 1,797 real handwritten digits that ship inside scikit-learn, brought to 28×28.

    The 8×8 images are enlarged to 20×20 (bilinear) and framed by 4 black pixels, like MNIST. The first 1,437 are
    for training, the last 360 for testing; they come from the same writers.

    Returns:
        `Digits` named `"optical-digits"`.

    Source: Alpaydin & Kaynak (1998), https://archive.ics.uci.edu/dataset/80
    """
    from keras import ops
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = (bunch.images / 16).astype("float32")[..., np.newaxis]
    images = np.clip(
        ops.convert_to_numpy(ops.image.resize(small, (20, 20), "bilinear", data_format="channels_last")), 0, 1
    )
    images = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    labels = bunch.target.astype("int64")
    split = 1437
    return Digits(images[:split], labels[:split], images[split:], labels[split:], "optical-digits")


def binarize(x, seed):
    """Draw each pixel as a coin that shows 1 with the pixel's grey value as probability.

    Args:
        x: Pixels in [0, 1], any shape.
        seed: Integer, not negative; the same seed gives the same draw.

    Returns:
        Zeros and ones, float32, same shape.

    Raises:
        ValueError: If a pixel is outside [0, 1] or not a number, or the seed is no such integer.

    Source: Salakhutdinov & Murray (2008), "On the quantitative analysis of deep belief networks", section 5.
    """
    x = check_pixels(x)
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"`seed` must be an integer, 0 or more. Received: {seed!r}")
    draws = np.random.default_rng(seed).random(x.shape, dtype="float32")
    return (draws < x).astype("float32")


def _announce_fallback(error):
    line = "!" * 78
    print(
        f"{line}\nMNIST is not here and could not be downloaded ({type(error).__name__}).\n"
        "scikit-learn's 1,797 optical digits stand in for it: EVERY NUMBER BELOW WILL DIFFER\n"
        f"from the text, which was written for MNIST.\n{line}",
        file=sys.stderr,
    )

"""MNIST from wherever it is, checked before it is used, and real digits for a machine that has never been online."""

import gzip
import hashlib
import io
import os
import queue
import stat
import struct
import sys
import threading
import time
import weakref
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np

URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
URL_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
TIMEOUT_SECONDS = 20  # of silence
DOWNLOAD_SECONDS = 600  # in all

#: SHA-256 of each array's raw bytes, and its shape.
MNIST = {
    "x_train": ("741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757", (60000, 28, 28)),
    "y_train": ("1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13", (60000,)),
    "x_test": ("6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161", (10000, 28, 28)),
    "y_test": ("ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5", (10000,)),
}
IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}

Digits = namedtuple("Digits", "x_train y_train x_test y_test name")
Digits.__doc__ = """Digits as a VAE takes them: images float32 in [0, 1] of shape `(n, 28, 28, 1)`, integer labels
of shape `(n,)`, and `name`, which says where they come from: `"mnist"` or `"optical-digits"`."""


class DataError(Exception):
    """The data could not be read or is not what it should be; the message names the file and what to do."""


def load_mnist(path=None, offline=None):
    """Load MNIST, checked against its published digest whatever the source.

    It looks at `path`, then at the environment variable `VAE_UTILS_DATA`, then in Keras' cache, then downloads into
    that cache. A path may be a file (`.npz`) or a folder with `mnist.npz` or the four IDX files, gzipped or not.
    The first place that has something decides: a bad file there is an error, never skipped in silence.

    Args:
        path: Optional file or folder.
        offline: What to do when there is no copy and no network. By default, raise; with `"optical-digits"`, say so
            and return `load_optical_digits()`.

    Returns:
        `Digits` with 60,000 training and 10,000 test digits, named `"mnist"`.

    Raises:
        DataError: If a file is missing, unreadable, or not MNIST; the file is left as it is.
        ValueError: If `offline` is not one of the above, or `path` is no path.

    Source: LeCun, Cortes & Burges, http://yann.lecun.com/exdb/mnist/
    """
    if offline not in (None, "optical-digits"):
        raise ValueError(f'`offline` must be None or "optical-digits". Received: {offline!r}')
    if not isinstance(path, (str, os.PathLike, type(None))):
        raise ValueError(f"`path` must be a file or a folder. Received: {path!r}")
    given = path or os.environ.get("VAE_UTILS_DATA")
    cached = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets" / "mnist.npz"
    if not given and not os.path.lexists(cached):
        try:
            _download(cached)
        except ConnectionError as error:
            if offline:
                _announce_fallback(error)
                return load_optical_digits()
            raise DataError(
                f"No copy of MNIST was found, and {URL} could not be downloaded to {cached} ({type(error).__name__}). "
                "Go online, or set VAE_UTILS_DATA to a folder that holds mnist.npz, or call "
                'load_mnist(offline="optical-digits").'
            ) from error
    arrays = _read(Path(os.path.expanduser(given)) if given else cached)
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
    images = np.clip(ops.convert_to_numpy(ops.image.resize(small, (20, 20), "bilinear")), 0, 1)
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


def batches(data, batch_size=32, shuffle=True):
    """Make of arrays the batches that Keras makes of them, in a `tf.data.Dataset` whose epochs end without a wait.

    `tf.data` tunes Keras' own data set while it is read, in rounds that double from 10 ms. When it misses the end of
    an epoch, the epoch lasts until the round is over, up to twice as long. Keras also keeps copies of the arrays.
    `VAE` uses this function; for another model, write `model.fit(batches(x, 100), shuffle=False)`.

    Args:
        data: Array, or tuple of arrays of one length: inputs, or inputs and targets.
        batch_size: Rows in a batch; the last one may have fewer.
        shuffle: Whether to shuffle, in every epoch anew; after `keras.utils.set_random_seed` always alike, as in Keras.

    Returns:
        Data set of batches, or of tuples of them.

    Raises:
        ValueError: If the arrays are empty, differ in length or hold no numbers, or the size is no positive integer.
    """
    import tensorflow as tf
    from keras import backend

    check_sizes(batch_size=batch_size)
    arrays = [as_numbers(part, "data") for part in (data if isinstance(data, tuple) else (data,))]
    length = len(arrays[0]) if arrays and arrays[0].shape else 0
    if length == 0 or any(array.shape[:1] != (length,) for array in arrays):
        raise ValueError(f"`data` must hold arrays of one length, 1 or more. Received: {[a.shape for a in arrays]}")
    arrays = [array.astype(backend.floatx(), copy=False) if array.dtype.kind == "f" else array for array in arrays]

    def order(_):
        rows = tf.range(length, dtype=tf.int64)
        return tf.random.shuffle(rows) if shuffle else rows

    # In NumPy: TensorFlow would copy the whole arrays first, and keep the memory of two such copies for good. The
    # function stays in memory until Python collects it. So the data set holds the arrays, and frees them at its end.
    held, dtypes, shapes = zip(*[(weakref.ref(array), array.dtype, array.shape[1:]) for array in arrays], strict=True)

    def pick(rows):
        picked = tf.numpy_function(lambda rows: [array()[rows] for array in held], [rows], dtypes)
        picked = tuple(tf.ensure_shape(part, (*rows.shape, *shape)) for part, shape in zip(picked, shapes, strict=True))
        return picked if len(picked) > 1 else picked[0]

    options = tf.data.Options()
    options.autotune.enabled = False
    found = tf.data.Dataset.range(1).map(order).rebatch(batch_size).map(pick).prefetch(2)
    found = found.apply(tf.data.experimental.assert_cardinality(-(-length // batch_size))).with_options(options)
    found.arrays = arrays
    return found


def as_numbers(x, name="x"):
    """Return `x` as an array of real numbers, or raise `ValueError`."""
    try:
        x = np.asarray(x)
    except Exception as error:  # ragged lists, and objects of all kinds that claim to be arrays
        raise ValueError(f"`{name}` must be an array of numbers. Received: {error}") from error
    if x.dtype.kind not in "biuf" and x.dtype.name != "bfloat16":
        raise ValueError(f"`{name}` must hold numbers. Received: dtype {x.dtype}")
    return x


def check_pixels(x):
    """Return `x` as an array of values in [0, 1], or raise `ValueError` that says what it holds."""
    x = as_numbers(x)
    if x.size and not (x.min() >= 0 and x.max() <= 1):  # also catches NaN, which compares false
        hint = " Divide by 255 first." if x.max() > 1 and x.min() >= 0 else ""
        nans = np.isnan(x).sum()
        received = f"{nans} values that are NaN." if nans else f"values from {x.min():g} to {x.max():g}.{hint}"
        raise ValueError(f"Pixels must lie in [0, 1]. Received: {received}")
    return x


def check_sizes(**named):
    """Raise `ValueError` unless every value is a positive integer."""
    for name, size in named.items():
        if not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"`{name}` takes positive integers. Received: {size!r}")


def _announce_fallback(error):
    line = "!" * 78
    print(
        f"{line}\nMNIST is not here and could not be downloaded ({type(error).__name__}).\n"
        "scikit-learn's 1,797 optical digits stand in for it: EVERY NUMBER BELOW WILL DIFFER\n"
        f"from the text, which was written for MNIST.\n{line}",
        file=sys.stderr,
    )


def _download(target):
    """Download to `target` in one move: at no time does a partial file carry that name."""
    import pooch
    from requests.exceptions import RequestException, Timeout
    from tqdm import tqdm

    deadline = time.monotonic() + DOWNLOAD_SECONDS
    answer = queue.SimpleQueue()

    class Bar(tqdm):
        def update(self, n=1):
            if time.monotonic() > deadline:
                raise Timeout(f"not done after {DOWNLOAD_SECONDS} s")
            return super().update(n)

    def retrieve():
        try:
            with Bar(total=1, unit="B", unit_scale=True, delay=1) as bar:
                downloader = pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS, progressbar=bar)
                answer.put(pooch.retrieve(URL, URL_SHA256, target.name, target.parent, downloader=downloader))
        except Exception as error:
            answer.put(error)

    pooch.get_logger().setLevel("WARNING")  # its notice would put the reader's folders into a notebook
    # In a thread, which can be left behind: neither a name server nor a trickle of bytes holds us past the deadline.
    threading.Thread(target=retrieve, daemon=True).start()
    try:
        outcome = answer.get(timeout=DOWNLOAD_SECONDS + 1)
        if isinstance(outcome, Exception):
            raise outcome
    except (RequestException, queue.Empty) as error:
        raise ConnectionError(str(error)) from error
    except ValueError as error:  # what pooch raises when the hash is wrong
        raise DataError(f"What {URL} sent was damaged ({error}). Nothing was kept; try again.") from error
    except OSError as error:
        raise DataError(
            f"{target} could not be written ({error}). Make room, or set KERAS_HOME to another folder."
        ) from error


def _read(path):
    """Read the four arrays from a file or folder and check them; every fault becomes a DataError."""
    leave = "It was left as it is: delete or replace it, or name another copy."
    try:
        if path.is_dir() and not os.path.lexists(path / "mnist.npz"):
            arrays = {name: _read_idx(path, name) for name in MNIST}
        else:
            path = path / "mnist.npz" if path.is_dir() else path
            arrays = _read_npz(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename or path} does not exist. Give a mnist.npz, or a folder that holds it "
            f"or the four files {', '.join(IDX_FILES.values())} (gzipped or not)."
        ) from error
    except PermissionError as error:
        raise DataError(f"{error.filename or path} may not be read: check its permissions.") from error
    except Exception as error:  # whatever a parser trips over, the reader needs the file's name
        raise DataError(f"{path} is damaged or is not MNIST ({error}). {leave}") from error
    for name, (digest, _) in MNIST.items():
        if hashlib.sha256(arrays[name].tobytes()).hexdigest() != digest:
            raise DataError(f"{path}: {name} is not MNIST's (its SHA-256 differs). {leave}")
    return arrays


def _read_npz(path):
    _expect_file(path)
    with zipfile.ZipFile(path) as archive:
        missing = [name for name in MNIST if f"{name}.npy" not in archive.namelist()]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
            raise ValueError("NumPy does not compress like this")  # a few bytes of bzip2 may unpack to gigabytes
        return {name: _read_npy(archive, name) for name in MNIST}


def _read_npy(archive, name):
    # The header is read by hand: np.load would unpickle objects, or trust a header that claims terabytes.
    with archive.open(f"{name}.npy") as file:
        stream = io.BytesIO(file.read(2**16 + int(np.prod(MNIST[name][1]))))
    major, _ = np.lib.format.read_magic(stream)
    read_header = getattr(np.lib.format, f"read_array_header_{major}_0")
    shape, _, dtype = read_header(stream)
    _expect(name, shape, dtype)
    return _read_bytes(stream, name)


def _read_idx(folder, name):
    path = folder / IDX_FILES[name]
    zipped = path.with_name(path.name + ".gz")
    path = zipped if os.path.lexists(zipped) else path
    _expect_file(path)
    with (gzip.open if path is zipped else open)(path, "rb") as stream:
        rank = len(MNIST[name][1])
        zeros, kind, axes, *shape = struct.unpack(f">HBB{rank}I", stream.read(4 + 4 * rank))
        _expect(name, tuple(shape), "uint8" if (zeros, kind, axes) == (0, 8, rank) else "unknown")
        return _read_bytes(stream, name)


def _expect_file(path):
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise ValueError("it is no file")


def _expect(name, shape, dtype):
    expected = MNIST[name][1]
    if shape != expected or dtype != "uint8":
        raise ValueError(f"{name} is {dtype} of shape {shape}, expected uint8 of shape {expected}")


def _read_bytes(stream, name):
    shape = MNIST[name][1]
    data = stream.read(int(np.prod(shape)))
    return np.frombuffer(data, "uint8").reshape(shape)

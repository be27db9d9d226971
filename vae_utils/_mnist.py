"""MNIST's files: where they come from, how they are read without trusting them, and the digests that they must have."""

import gzip
import hashlib
import io
import os
import queue
import stat
import struct
import threading
import time
import zipfile

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


class DataError(Exception):
    """The data could not be read or is not what it should be; the message names the file and what to do."""


def download(target):
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


def read(path):
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

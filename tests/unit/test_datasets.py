"""Every source of MNIST, every fault of a file, the fallback, and binarization."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from vae_utils import _mnist
from vae_utils._mnist import IDX_FILES
from vae_utils.datasets import DataError, binarize, load_mnist

not_on_other_backends = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it makes a tf.data.Dataset")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No copy anywhere, and a network that refuses."""
    monkeypatch.delenv("VAE_UTILS_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))

    def refuse(target):
        raise ConnectionError("no network")

    monkeypatch.setattr(_mnist, "download", refuse)


@pytest.fixture
def accepted(monkeypatch, fake_mnist):
    """Let arrays of MNIST's shapes pass for MNIST, so that sources can be tested without it."""
    arrays, digests = fake_mnist
    monkeypatch.setattr(_mnist, "MNIST", digests)
    return arrays


def write_idx(folder, arrays, zipped=False, skip=()):
    folder.mkdir(exist_ok=True)
    for name, stem in IDX_FILES.items():
        array = arrays[name]
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        if stem not in skip:
            path = folder / (stem + ".gz" if zipped else stem)
            path.write_bytes(gzip.compress(content, 1) if zipped else content)
    return folder


def assert_loaded(digits, arrays):
    assert digits.name == "mnist"
    assert digits.x_train.dtype == np.float32 and digits.x_train.shape == (60000, 28, 28, 1)
    np.testing.assert_array_equal((digits.x_test[..., 0] * 255).round(), arrays["x_test"])
    np.testing.assert_array_equal(digits.y_train, arrays["y_train"])


@pytest.mark.mnist
def test_real_mnist(mnist):
    # Class counts and mean as published, see https://yann.lecun.com/exdb/mnist/ and the usual 0.1307.
    assert np.bincount(mnist.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.x_train.shape == (60000, 28, 28, 1) and mnist.x_test.shape == (10000, 28, 28, 1)
    assert abs(mnist.x_train.mean() - 0.1307) < 5e-5
    assert (mnist.x_train.min(), mnist.x_train.max(), mnist.name) == (0, 1, "mnist")


def test_sources(accepted, offline, monkeypatch, tmp_path):
    file = tmp_path / "digits with ümlaut.npz"
    np.savez(file, **accepted)
    assert_loaded(load_mnist(file), accepted)
    assert_loaded(load_mnist(str(file)), accepted)

    folder = tmp_path / "npz"
    folder.mkdir()
    os.link(file, folder / "mnist.npz")
    monkeypatch.setenv("VAE_UTILS_DATA", str(folder))
    assert_loaded(load_mnist(), accepted)
    monkeypatch.setenv("VAE_UTILS_DATA", str(file))
    assert_loaded(load_mnist(), accepted)
    monkeypatch.delenv("VAE_UTILS_DATA")

    cache = tmp_path / "keras" / "datasets"
    cache.mkdir(parents=True)
    os.link(file, cache / "mnist.npz")
    assert_loaded(load_mnist(), accepted)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folders(accepted, tmp_path, zipped):
    assert_loaded(load_mnist(write_idx(tmp_path / "idx", accepted, zipped)), accepted)


def test_path_comes_before_the_environment(accepted, monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_UTILS_DATA", str(tmp_path / "nowhere"))
    assert_loaded(load_mnist(write_idx(tmp_path / "idx", accepted)), accepted)


def npz_bytes(arrays, compress=False):
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)
    return buffer.getvalue()


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("code-from-the-file-was-run",))


def bad_files(arrays):
    whole = npz_bytes({name: array[:100] for name, array in arrays.items()})
    yield "truncated", npz_bytes(arrays)[:-1000]
    flipped = bytearray(npz_bytes(arrays))
    flipped[len(flipped) // 2] ^= 1
    yield "one byte flipped", bytes(flipped)
    yield "not an npz", b"<html>404</html>"
    yield "empty", b""
    yield "shapes", whole
    yield "missing", npz_bytes({name: array for name, array in arrays.items() if name != "y_test"})
    yield "types", npz_bytes({**arrays, "y_test": arrays["y_test"].astype("int64")})
    yield "pickled", npz_bytes({**arrays, "y_test": np.array([Bomb()], dtype=object)})
    buffer = io.BytesIO(npz_bytes({name: a for name, a in arrays.items() if name != "y_test"}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("y_test.npy", pickle.dumps(Bomb()))
    yield "bare pickle", buffer.getvalue()


def test_bad_files_are_named_and_left_alone(accepted, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.npz"
    tried = []
    for fault, content in bad_files(accepted):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.npz") as caught:
            load_mnist(path)
        assert "delete or replace" in str(caught.value), fault
        assert path.read_bytes() == content, fault
        tried.append(fault)
    assert len(tried) == 9
    assert not (tmp_path / "code-from-the-file-was-run").exists()


def test_one_wrong_pixel_is_found(accepted, tmp_path):
    x_test = accepted["x_test"].copy()
    x_test[123, 4, 5] ^= 1
    path = tmp_path / "bad.npz"
    np.savez(path, **{**accepted, "x_test": x_test})
    with pytest.raises(DataError, match=r"bad\.npz: x_test is not MNIST's \(its SHA-256 differs\)"):
        load_mnist(path)


def test_a_header_that_claims_terabytes_is_refused(accepted, tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, **{name: a for name, a in accepted.items() if name != "y_test"})
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y_test.npy", header.getvalue())
    with pytest.raises(DataError, match=r"y_test is uint8 of shape \(1000000000000,\), expected"):
        load_mnist(path)


def test_three_of_four_idx_files(accepted, tmp_path):
    folder = write_idx(tmp_path / "idx", accepted, skip=[IDX_FILES["y_test"]])
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.* does not exist"):
        load_mnist(folder)


def test_swapped_idx_files(accepted, tmp_path):
    folder = write_idx(tmp_path / "idx", {**accepted, "x_test": accepted["x_train"][:10000, :, :27]})
    with pytest.raises(DataError, match=r"x_test is uint8 of shape \(10000, 28, 27\)"):
        load_mnist(folder)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path / "nowhere.npz", tmp_path):
        with pytest.raises(DataError, match=r"does not exist\. Give a mnist\.npz"):
            load_mnist(path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_no_permission():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "locked.npz"
        path.write_bytes(b"")
        path.chmod(0)
        Path(folder).chmod(0o755)
        root = os.geteuid() == 0
        try:
            if root:  # who may read everything: become nobody for a moment
                os.seteuid(65534)
            with pytest.raises(DataError, match=r"locked\.npz may not be read: check its permissions"):
                load_mnist(path)
        finally:
            if root:
                os.seteuid(0)


def test_no_network(offline):
    with pytest.raises(DataError, match=r"Go online, or set VAE_UTILS_DATA .*optical-digits"):
        load_mnist()


@pytest.mark.parametrize("offline", [None, "optical-digits"])
def test_a_refused_connection(monkeypatch, tmp_path, offline):
    monkeypatch.delenv("VAE_UTILS_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(_mnist, "URL", "http://127.0.0.1:9/mnist.npz")  # the discard port: nobody listens
    if offline:
        assert load_mnist(fallback=offline).name == offline
    else:
        with pytest.raises(DataError, match="Go online"):
            load_mnist()


def test_a_bad_cache_is_an_error_even_with_a_fallback(offline, tmp_path):
    cache = tmp_path / "keras" / "datasets"
    cache.mkdir(parents=True)
    (cache / "mnist.npz").write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"mnist\.npz is damaged"):
        load_mnist(fallback="optical-digits")


def test_fallback_cannot_be_missed(offline, capsys):
    digits = load_mnist(fallback="optical-digits")
    assert digits.name == "optical-digits"
    assert "EVERY NUMBER BELOW WILL DIFFER" in capsys.readouterr().err


def test_a_damaged_download_is_refused(accepted, monkeypatch, tmp_path):
    """The real download code, fed from a file: the wrong bytes must not reach the cache."""
    monkeypatch.delenv("VAE_UTILS_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    content = npz_bytes(accepted)

    class Downloader:
        def __init__(self, **options):
            assert options["timeout"] <= 60

        def __call__(self, url, output_file, pooch):
            with open(output_file, "wb") as stream:
                stream.write(self.content)

    import pooch

    monkeypatch.setattr(pooch, "HTTPDownloader", Downloader)
    Downloader.content = content[:-1]
    monkeypatch.setattr(_mnist, "URL_SHA256", "sha256:" + hashlib.sha256(content).hexdigest())
    with pytest.raises(DataError, match="damaged"):
        load_mnist(fallback="optical-digits")
    assert list((tmp_path / "datasets").iterdir()) == []
    Downloader.content = content
    assert_loaded(load_mnist(), accepted)
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == ["mnist.npz"]


def test_offline_must_be_known():
    with pytest.raises(ValueError, match="optical-digits"):
        load_mnist(fallback="yes")


def test_optical_digits(digits):
    from sklearn.datasets import load_digits

    assert len(digits.x_train) == len(digits.y_train) == 1437 and len(digits.x_test) == len(digits.y_test) == 360
    images = np.concatenate([digits.x_train, digits.x_test])
    assert images.dtype == np.float32 and images.shape[1:] == (28, 28, 1)
    assert images.min() == 0 and 0.8 < images.max() <= 1
    np.testing.assert_array_equal(np.concatenate([digits.y_train, digits.y_test]), load_digits().target)
    # Enlarging 8×8 to 20×20 keeps the share of ink, (20/28)² of the frame's.
    ink = load_digits().images.mean(axis=(1, 2)) / 16 * (20 / 28) ** 2
    assert np.corrcoef(images.mean(axis=(1, 2, 3)), ink)[0, 1] > 0.99
    # The right way up: pixels of the enlarged image lie where the small one has them.
    small = load_digits().images[0] / 16
    large = images[0, 4:24, 4:24, 0].reshape(4, 5, 4, 5).mean(axis=(1, 3))
    assert np.corrcoef(large.ravel(), small.reshape(4, 2, 4, 2).mean(axis=(1, 3)).ravel())[0, 1] > 0.95


def test_binarize_draws_with_the_grey_value_as_probability():
    x = np.full((200, 500), 0.3, "float32")
    drawn = binarize(x, seed=1)
    assert set(np.unique(drawn)) == {0, 1} and drawn.dtype == np.float32
    standard_error = np.sqrt(0.3 * 0.7 / x.size)
    assert abs(drawn.mean() - 0.3) < 4 * standard_error  # exceeded once in 16,000; the seed is fixed
    np.testing.assert_array_equal(drawn, binarize(x, seed=1))
    assert not np.array_equal(drawn, binarize(x, seed=2))
    np.testing.assert_array_equal(binarize(np.array([0.0, 1.0]), seed=0), [0, 1])


@pytest.mark.parametrize("x", [[0.5, 1.1], [-0.1], [np.nan]])
def test_binarize_refuses_what_is_no_probability(x):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        binarize(x, seed=0)

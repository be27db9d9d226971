"""Bad files: whatever lies where MNIST should be, the right arrays or DataError, no code run, memory bounded."""

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from archives import npz
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tools import memory
from tools.chapters import ROOT
from vae_utils import _mnist
from vae_utils._mnist import IDX_FILES
from vae_utils.datasets import DataError, load_mnist

pytestmark = pytest.mark.robustness

NAMES = ("x_train", "y_train", "x_test", "y_test")
MORE_THAN_ENOUGH = 64 * 2**20  # bytes that reading the small digits may take


class Bomb:
    """Unpickled, it leaves a mark."""

    def __reduce__(self):
        return (os.mkdir, ("code-was-run",))


@pytest.fixture(scope="module")
def world(small, tmp_path_factory):
    """An empty folder to work in, in which no code from a file may leave its mark."""
    folder = tmp_path_factory.mktemp("bad files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mnist, "MNIST", small[1])
        patch.chdir(folder)
        yield folder, small[0]
    assert not (folder / "code-was-run").exists()


def check(path, arrays):
    """The right arrays, or DataError that names the path; nothing else."""
    try:
        digits = load_mnist(path)
    except DataError as error:
        assert Path(path).name in str(error)
        return "refused"
    for name in NAMES:
        images = getattr(digits, name)
        given = (images[..., 0] * 255).round() if name[0] == "x" else images
        np.testing.assert_array_equal(given, arrays[name])
    return "read"


@st.composite
def damaged(draw, content):
    """Bytes flipped, cut, spliced, doubled or overwritten, up to three times."""
    for _ in range(draw(st.integers(1, 3))):
        # Half of the damage goes where the file's structure is: the beginning, and an archive's directory at its end.
        n = max(len(content), 1)
        place = st.one_of(st.integers(0, n - 1), st.integers(0, min(300, n - 1)), st.integers(max(0, n - 600), n - 1))
        i, j = sorted((draw(place), draw(place)))
        kind = draw(st.sampled_from(["flip", "cut", "drop", "double", "swap", "noise", "zero"]))
        if kind == "flip":
            content = (
                content[:i] + bytes([(content[i] if content else 0) ^ draw(st.integers(1, 255))]) + content[i + 1 :]
            )
        content = {
            "flip": content,
            "cut": content[:i],
            "drop": content[:i] + content[j:],
            "double": content[:j] + content[i:],
            "swap": content[j:] + content[:i],
            "noise": content[:i] + draw(st.binary(max_size=64)) + content[i + 64 :],
            "zero": content[:i] + bytes(j - i) + content[j:],
        }[kind]
    return content


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.data(), st.booleans())
def test_damaged_archives(world, tried, choose, compress):
    folder, arrays = world
    path = folder / "damaged.npz"
    path.write_bytes(choose.draw(damaged(npz(arrays, compress))))
    check(path, arrays)
    tried()


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from(NAMES), st.booleans())
def test_damaged_idx_files(world, tried, choose, name, zipped):
    folder, arrays = world
    idx = write_idx(folder / "idx", arrays, zipped)
    path = idx / (IDX_FILES[name] + ".gz" * zipped)
    path.write_bytes(choose.draw(damaged(path.read_bytes())))
    check(idx, arrays)
    path.unlink()
    assert check(idx, arrays) == "refused"
    tried()


def write_idx(folder, arrays, zipped=False):
    folder.mkdir(exist_ok=True)
    for name, stem in IDX_FILES.items():
        (folder / stem).unlink(missing_ok=True)
        (folder / f"{stem}.gz").unlink(missing_ok=True)
        array = arrays[name]
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        path = folder / (stem + ".gz" * zipped)
        path.write_bytes(gzip.compress(content, 1) if zipped else content)
    return folder


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(NAMES),
    st.sampled_from(["u1", "i1", "u2", ">u2", "f4", "f8", "b1", "c8", "S3", "U2", "M8[s]", "O", "V4", "u1,f4"]),
    st.lists(st.integers(0, 61), max_size=4),
)
def test_other_types_and_shapes(world, tried, name, dtype, shape):
    folder, arrays = world
    path = folder / "other.npz"
    array = np.zeros(shape, dtype)
    path.write_bytes(npz({**arrays, name: array}))
    assert check(path, arrays) == "refused"
    tried()


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.recursive(st.none() | st.text(max_size=5), lambda s: st.lists(s) | st.dictionaries(st.text(), s)).map(
            pickle.dumps
        ),
    ),
    st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"\x93NUMPY\x03\x00", b"\x93NUMPY\x04\x00"]),
    st.booleans(),
)
@example(pickle.dumps(Bomb()), b"", True)
@example(pickle.dumps(Bomb()), b"", False)
@example(b"\x10\x00{'descr':__import__", b"\x93NUMPY\x01\x00", True)
def test_any_bytes_as_an_array_or_a_file(world, tried, content, magic, inside):
    folder, arrays = world
    path = folder / "bytes.npz"
    buffer = io.BytesIO(npz({name: arrays[name] for name in NAMES[:3]}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("y_test.npy", magic + content)
    path.write_bytes(buffer.getvalue() if inside else magic + content)
    assert check(path, arrays) == "refused"
    tried()


# Which characters a path may have is the file system's affair: it, too, ends in DataError.
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.text(st.characters(exclude_characters="/\\\0", exclude_categories=("Cs",)), min_size=1, max_size=60),
    st.booleans(),
)
@example("~", True)
@example("~nobody-of-that-name", False)
@example("mnist.npz", False)
@example("п" * 60, True)
def test_any_path(world, tried, name, is_file):
    folder, arrays = world
    path = folder / f"{name}.npz"
    if is_file:
        path.write_bytes(npz(arrays))
        assert check(path, arrays) == "read"
        path.unlink()
    assert check(path, arrays) == "refused"
    with pytest.raises(DataError):
        load_mnist(f"~{name.strip('.')}/below")
    tried()


@pytest.mark.parametrize("path", ["a\0b", "x" * 5_000, "/dev/null/x", "\ud800"])
def test_impossible_paths(world, monkeypatch, tried, path):
    with pytest.raises(DataError):
        load_mnist(path)
    tried()


@pytest.mark.parametrize("path", [3, 1.5, b"mnist.npz", ["mnist.npz"], {"a": 1}, np.zeros(3)])
def test_what_is_no_path(world, tried, path):
    with pytest.raises(ValueError, match="`path` must be a file or a folder"):
        load_mnist(path)
    tried()


def test_pickled_objects_are_not_unpickled(world, tried):
    folder, arrays = world
    path = folder / "pickled.npz"
    for name in NAMES:
        path.write_bytes(npz({**arrays, name: np.array([Bomb()] * len(arrays[name]), dtype=object)}))
        assert check(path, arrays) == "refused"
        tried()


def test_links_folders_and_devices(world, tmp_path, tried):
    _, arrays = world
    (tmp_path / "good.npz").write_bytes(npz(arrays))
    (tmp_path / "link.npz").symlink_to("good.npz")
    assert check(tmp_path / "link.npz", arrays) == "read"
    (tmp_path / "dangling.npz").symlink_to("nowhere")
    (tmp_path / "loop.npz").symlink_to("loop.npz")
    (tmp_path / "to a folder.npz").symlink_to("/dev")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "folder" / "mnist.npz").mkdir(parents=True)
    faults = ["dangling.npz", "loop.npz", "to a folder.npz", "folder.npz", "folder"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.npz")
        (tmp_path / "pipes").mkdir()
        os.mkfifo(tmp_path / "pipes" / IDX_FILES["x_train"])
        os.mkfifo(tmp_path / "pipes" / f"{IDX_FILES['x_train']}.gz")
        faults += ["pipe.npz", "pipes", "/dev/zero"]
    for fault in faults:
        with pytest.raises(DataError, match=r"delete or replace it|does not exist"):
            load_mnist(tmp_path / fault)
        tried()


def bombs(arrays):
    """Files of a few megabytes at most that unpack to gigabytes, or claim to."""
    rest = npz({name: arrays[name] for name in NAMES[:3]})
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10,)})
    long_header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)

    def zeros(start, method, size=2**30):
        buffer = io.BytesIO(rest)
        with (
            zipfile.ZipFile(buffer, "a", method, compresslevel=1) as archive,
            archive.open("y_test.npy", "w", force_zip64=True) as stream,
        ):
            stream.write(start)
            for _ in range(size // 2**24):
                stream.write(bytes(2**24))
        return buffer.getvalue()

    yield "a gigabyte after the array", zeros(header.getvalue(), zipfile.ZIP_DEFLATED)
    yield "a gigabyte of header", zeros(long_header, zipfile.ZIP_DEFLATED)
    yield "bzip2", zeros(header.getvalue(), zipfile.ZIP_BZIP2, 2**28)
    yield "bzip2 of headers", zeros(long_header, zipfile.ZIP_BZIP2, 2**28)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for k in range(20_000):
            archive.writestr(f"{k}.npy", b"")
    yield "20,000 members", buffer.getvalue()
    for shape in ((2**63 - 1,), (10**12,), (2**31, 2**31), (-1,)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        buffer = io.BytesIO(rest)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("y_test.npy", header.getvalue())
        yield f"a header that claims {shape}", buffer.getvalue()


READER = """
import json, sys
from tools import memory
from vae_utils import _mnist, datasets

_mnist.MNIST = {name: (digest, tuple(shape)) for name, (digest, shape) in json.loads(sys.argv[2]).items()}
before = memory.peak()
try:
    datasets.load_mnist(sys.argv[1])
except datasets.DataError as error:
    print("refused", end=" ")
print(memory.peak() - before)
"""


def memory_taken(path, digests):
    command = [sys.executable, "-c", READER, str(path), json.dumps(digests)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


@pytest.mark.skipif(memory.peak() is None, reason="this system doesn't keep a process' largest memory")
def test_bombs_take_little_memory(small, tmp_path, tried):
    arrays, digests = small
    path = tmp_path / "bomb.npz"
    for fault, content in bombs(arrays):
        path.write_bytes(content)
        verdict, taken = ["", *memory_taken(path, digests)][-2:]
        assert (verdict, int(taken) < MORE_THAN_ENOUGH) in (("refused", True), ("", True)), (fault, taken)
        tried()
    idx = write_idx(tmp_path / "idx", arrays)
    with gzip.open(idx / f"{IDX_FILES['x_train']}.gz", "wb", 1) as stream:
        stream.write((idx / IDX_FILES["x_train"]).read_bytes())
        for _ in range(64):
            stream.write(bytes(2**24))
    verdict, taken = ["", *memory_taken(idx, digests)][-2:]
    assert int(taken) < MORE_THAN_ENOUGH
    tried()

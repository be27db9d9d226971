"""Data under fault: a server on this machine speaks to the real download code, and the disk fails too."""

import contextlib
import hashlib
import http.server
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from archives import npz

from tools.chapters import ROOT
from vae_utils import _mnist
from vae_utils.datasets import DataError, load_mnist

pytestmark = [pytest.mark.robustness, pytest.mark.skipif(os.name != "posix", reason="kills and mounts as POSIX does")]

SILENCE, LIMIT = 1, 3  # seconds, in place of the real 20 and 600


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, content):
        self.content, self.behave, self.requests = content, good, 0
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/mnist.npz"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, *_):
        pass  # a client that hangs up is what these tests are for


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        self.server.behave(self, self.server.content)

    def start(self, code=200, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_):
        pass


def good(http, content):
    http.start(Content_Length=len(content))
    http.wfile.write(content)


def moved(http, content):
    if http.path == "/mnist.npz":
        return http.start(302, Location="/elsewhere")
    return good(http, content)


def moved_for_ever(http, content):
    http.start(301, Location="/mnist.npz")


def moved_to_nowhere(http, content):
    http.start(301, Location="http://127.0.0.1:9/mnist.npz")


def moved_to_nonsense(http, content):
    http.start(301, Location="http://[:/")


def busy_at_first(http, content):
    return http.start(503) if http.server.requests == 1 else good(http, content)


def missing(http, content):
    http.start(404)


def broken(http, content):
    http.start(500)


def a_page_instead(http, content):
    good(http, b"<html>Please log in to the hotel's network</html>")


def empty(http, content):
    good(http, b"")


def wrong_bytes(http, content):
    good(http, content[:5_000] + bytes([content[5_000] ^ 1]) + content[5_001:])


def longer(http, content):
    good(http, content + b"x")


def cut(http, content):
    http.start(Content_Length=len(content))
    http.wfile.write(content[: len(content) // 2])


def cut_without_a_length(http, content):
    http.start()
    http.wfile.write(content[: len(content) // 2])


def reset(http, content):
    cut(http, content)
    http.wfile.flush()
    http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    http.connection.close()


def silent(http, content):
    time.sleep(2 * LIMIT)


def silent_halfway(http, content):
    cut(http, content)
    http.wfile.flush()
    time.sleep(2 * LIMIT)


def slow_but_steady(http, content):
    http.start(Content_Length=len(content))
    for start in range(0, len(content), len(content) // 8):
        http.wfile.write(content[start : start + len(content) // 8])
        http.wfile.flush()
        time.sleep(0.1)


def trickle(http, content):
    http.start(Content_Length=len(content))
    for k in range(60):
        http.wfile.write(content[k : k + 1])
        http.wfile.flush()
        time.sleep(0.2)


def trickling_headers(http, content):
    for k in range(60):
        http.wfile.write(b"HTTP/1.0 200 OK\r\n" if k == 0 else b"X")
        http.wfile.flush()
        time.sleep(0.2)


def endless(http, content):
    http.start()
    for _ in range(10_000):
        http.wfile.write(bytes(2_000))
        time.sleep(0.001)


def no_http(http, content):
    http.wfile.write(b"SSH-2.0-OpenSSH\r\n" * 3)


def bad_length(http, content):
    http.start(Content_Length="many")
    http.wfile.write(content)


def bad_encoding(http, content):
    http.start(Content_Length=len(content), Content_Encoding="gzip")
    http.wfile.write(content)


FINE = [good, moved, slow_but_steady]
FAULTS = [
    *(busy_at_first, missing, broken, a_page_instead, empty, wrong_bytes, longer, cut, cut_without_a_length, reset),
    *(silent, silent_halfway, trickle, trickling_headers, endless, no_http, bad_length, bad_encoding),
    *(moved_for_ever, moved_to_nowhere, moved_to_nonsense),
]


@pytest.fixture
def server(small, monkeypatch, tmp_path):
    """A server that has the small digits, and an empty cache."""
    arrays, digests = small
    server = Server(npz(arrays))
    monkeypatch.delenv("VAE_UTILS_DATA", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(_mnist, "MNIST", digests)
    monkeypatch.setattr(_mnist, "URL", server.url)
    monkeypatch.setattr(_mnist, "URL_SHA256", hashlib.sha256(server.content).hexdigest())
    monkeypatch.setattr(_mnist, "TIMEOUT_SECONDS", SILENCE)
    monkeypatch.setattr(_mnist, "DOWNLOAD_SECONDS", LIMIT)
    yield server
    server.shutdown()
    server.server_close()


def cache():
    folder = Path(os.environ["KERAS_HOME"]) / "datasets"
    return sorted(folder.iterdir()) if folder.exists() else []


def assert_right(digits, small):
    arrays, _ = small
    np.testing.assert_array_equal((digits.x_train[..., 0] * 255).round(), arrays["x_train"])
    np.testing.assert_array_equal(digits.y_test, arrays["y_test"])


@pytest.mark.parametrize("behave", FINE)
def test_what_a_server_may_do(server, small, tried, behave):
    server.behave = behave
    assert_right(load_mnist(), small)
    assert [path.name for path in cache()] == ["mnist.npz"]
    assert cache()[0].read_bytes() == server.content
    requests = server.requests
    assert_right(load_mnist(), small)
    assert server.requests == requests, "the second time it comes from the cache"
    tried()


@pytest.mark.parametrize("behave", FAULTS)
def test_what_a_server_may_not_do(server, small, tried, behave):
    server.behave = behave
    start = time.monotonic()
    with pytest.raises(DataError, match=r"mnist\.npz") as caught:
        load_mnist()
    assert time.monotonic() - start < LIMIT + SILENCE + 2, "it hangs"
    assert "Go online" in str(caught.value) or "try again" in str(caught.value)
    assert "mnist.npz" not in [path.name for path in cache()]
    server.behave = good
    assert_right(load_mnist(), small)
    tried()


def test_the_limits_are_stated_in_seconds():
    assert (_mnist.TIMEOUT_SECONDS, _mnist.DOWNLOAD_SECONDS) == (20, 600)


def test_no_network_at_all(server, monkeypatch, tried):
    for address in ("http://127.0.0.1:9/mnist.npz", "http://nobody.invalid/mnist.npz", "http://[::1]:9/mnist.npz"):
        monkeypatch.setattr(_mnist, "URL", address)
        with pytest.raises(DataError, match="Go online, or set VAE_UTILS_DATA"):
            load_mnist()
        assert load_mnist(fallback="optical-digits").name == "optical-digits"
        assert cache() == []
        tried()


def test_a_name_server_that_never_answers(server, monkeypatch, tried):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2 * LIMIT))
    start = time.monotonic()
    with pytest.raises(DataError, match="Go online"):
        load_mnist()
    assert time.monotonic() - start < LIMIT + 2
    tried()


@contextlib.contextmanager
def small_disk(folder, kilobytes, *options):
    """Mount a disk of that size, or skip where only an administrator may."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kilobytes}k", *options]), "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(server, small, monkeypatch, tmp_path, tried):
    with small_disk(tmp_path / "disk", 32) as disk:
        monkeypatch.setenv("KERAS_HOME", str(disk))
        with pytest.raises(DataError, match=r"could not be written .*No space left.* Make room"):
            load_mnist()
        assert cache() == [], "what did not fit is gone"
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "roomy"))
        assert_right(load_mnist(), small)
    tried()


def test_a_file_size_limit(server, tmp_path, tried):
    import resource

    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))}
    process = loader(tmp_path / "limited", server, **limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "DataError" in errors and "Make room" in errors
    assert list((tmp_path / "limited" / "datasets").iterdir()) == []
    tried()


def test_a_read_only_disk(server, monkeypatch, tmp_path, tried):
    with small_disk(tmp_path / "disk", 64, "ro") as disk:
        monkeypatch.setenv("KERAS_HOME", str(disk / "keras"))
        with pytest.raises(DataError, match=r"could not be written .* set KERAS_HOME"):
            load_mnist()
    tried()


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_cache_without_permission(server, monkeypatch, tried, mode):
    load_mnist()  # imports all it needs while it may
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(mode)
        monkeypatch.setenv("KERAS_HOME", name if mode else f"{name}/below")
        root = os.geteuid() == 0
        try:
            if root:  # who may write everywhere: become nobody for a moment
                os.seteuid(65534)
            with pytest.raises(DataError, match="could not be written"):
                load_mnist()
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)
    tried()


def test_a_file_where_the_cache_should_be(server, monkeypatch, tmp_path, tried):
    (tmp_path / "file").write_text("notes")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="could not be written"):
        load_mnist()
    assert (tmp_path / "file").read_text() == "notes"
    tried()


@pytest.mark.parametrize("left", [b"", b"PK\x03\x04", None])
def test_a_partial_file_in_the_cache_is_named_and_kept(server, small, tried, left):
    """As a killed download of another program, Keras' own among them, leaves it."""
    left = server.content[:20_000] if left is None else left
    folder = Path(os.environ["KERAS_HOME"]) / "datasets"
    folder.mkdir(parents=True)
    (folder / "mnist.npz").write_bytes(left)
    with pytest.raises(DataError, match=r"mnist\.npz is damaged .* delete or replace it"):
        load_mnist()
    assert (folder / "mnist.npz").read_bytes() == left and server.requests == 0
    (folder / "mnist.npz").unlink()
    assert_right(load_mnist(), small)
    tried()


LOADER = """
import hashlib, json, sys
from vae_utils import _mnist, datasets

_mnist.URL, _mnist.URL_SHA256, digests = json.loads(sys.argv[1])
_mnist.MNIST = {name: (digest, tuple(shape)) for name, (digest, shape) in digests.items()}
print(hashlib.sha256(datasets.load_mnist().x_train.tobytes()).hexdigest())
"""


def loader(home, server, **options):
    """Start another Python that loads the digits with the cache in `home`."""
    settings = json.dumps([server.url, _mnist.URL_SHA256, _mnist.MNIST])
    return subprocess.Popen(
        [sys.executable, "-c", LOADER, settings],
        cwd=ROOT,
        env={**os.environ, "KERAS_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def right_answer(small):
    return hashlib.sha256((small[0]["x_train"] / np.float32(255)).astype("float32").tobytes()).hexdigest()


def test_a_killed_download(server, small, tmp_path, tried):
    rng = random.Random(0)
    folder = tmp_path / "killed" / "datasets"
    for _ in range(3):
        server.behave, before = slow_but_steady, server.requests
        process = loader(tmp_path / "killed", server)
        while server.requests == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (folder / "mnist.npz").exists()
        tried()
    server.behave = good
    answer, errors = loader(tmp_path / "killed", server).communicate(timeout=60)
    assert answer.strip() == right_answer(small), errors
    assert (folder / "mnist.npz").read_bytes() == server.content


@pytest.mark.parametrize("behave", [good, slow_but_steady])
def test_sixteen_at_once_into_an_empty_cache(server, small, tmp_path, tried, behave):
    server.behave = behave
    processes = [loader(tmp_path / "shared", server) for _ in range(16)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert {answer.strip() for answer, _ in answers} == {right_answer(small)}, answers
    assert [path.name for path in (tmp_path / "shared" / "datasets").iterdir()] == ["mnist.npz"]
    assert (tmp_path / "shared" / "datasets" / "mnist.npz").read_bytes() == server.content
    tried(16)

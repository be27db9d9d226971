"""What an import costs, and what a notebook's kernel takes."""

from benchmarks.base import QUICK, ROUNDS, NotMeasuredError, row, run_python
from tools.chapters import chapters

IMPORT = """
import json, time
import keras
start = time.perf_counter()
import importlib, pkgutil, vae_utils
for module in pkgutil.iter_modules(vae_utils.__path__):
    importlib.import_module(f"vae_utils.{module.name}")
print(json.dumps(time.perf_counter() - start))
"""
HUB = 24_000  # MB

#: Prints the peak of a process that has done nothing yet, in GB.
START = """
import keras
from tools import memory
from vae_utils.datasets import load_mnist
load_mnist(fallback="optical-digits")
print((memory.peak() or memory.resident()) / 1e9)
"""


@row("import", "import vae_utils and all its modules, after keras", "", 0.2, at_most=True)
def import_time():
    run_python(IMPORT)  # compiles the bytecode
    return [run_python(IMPORT) for _ in range(ROUNDS)], None, "in fresh processes"


@row("memory", "peak memory of a notebook's kernel, the largest", "", 1.5, unit="GB", at_most=True)
def memory():
    peaks = {}
    for chapter in chapters():
        recorded = chapter.read().metadata.get("vae_utils", {})
        if recorded.get("peak_memory_mb"):
            peaks[chapter.number] = recorded["peak_memory_mb"]
    if not peaks:
        raise NotMeasuredError("not recorded yet: make notebooks")
    each = ", ".join(f"{chapter}: {peak / 1000:.2f} GB" for chapter, peak in peaks.items())
    largest = max(peaks.values())
    start = f"Keras and the digits alone {run_python(START):.2f} GB, and `leftover` says what each model adds"
    note = f"recorded when built; {each}; {start}; {HUB // largest} learners on {HUB // 1000} GB"
    return [largest / 1000], None, note


#: Prints how many MB each model leaves in memory that is trained and deleted.
LEFTOVER = """
import gc, keras
from tools import memory
from vae_utils.datasets import load_mnist
from vae_utils.architectures import dense_vae
from vae_utils.models import VAE
x, held = load_mnist(fallback="optical-digits").x_train[:1_000], []
for _ in range({models}):
    vae = dense_vae()
    vae.compile("adam")
    {fit}(vae, x, verbose=0)
    del vae
    gc.collect()
    held.append(memory.resident() / 1e6)
print(max(0.1, (held[-1] - held[0]) / (len(held) - 1)))
"""


@row(
    "leftover",
    "memory left by a dense VAE that was trained and deleted",
    "the same, trained by Keras' own fit",
    None,
    "MB",
)
def leftover():
    models, rounds = (3, 1) if QUICK else (9, 3)
    found = {"VAE.fit": [], "keras.Model.fit": []}
    for _ in range(rounds):
        for fit, megabytes in found.items():
            megabytes.append(run_python(LEFTOVER.format(models=models, fit=fit)))
    return *found.values(), f"the average of {models - 1} models, after a first one"

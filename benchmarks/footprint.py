"""What an import costs, and what a notebook's kernel takes."""

import json

from benchmarks.base import ROOT, ROUNDS, NotMeasuredError, row, run_python

IMPORT = """
import json, time
import keras
start = time.perf_counter()
import vae_utils
for module in vae_utils._MODULES:
    getattr(vae_utils, module)
print(json.dumps(time.perf_counter() - start))
"""
HUB = 24_000  # MB


@row("import", "import vae_utils and all its modules, after keras", "", 0.2, at_most=True)
def import_time():
    run_python(IMPORT)  # compiles the bytecode
    return [run_python(IMPORT) for _ in range(ROUNDS)], None, "in fresh processes"


@row("memory", "peak memory of a notebook's kernel, the largest", "", 1.5, unit="GB", at_most=True)
def memory():
    peaks = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        recorded = json.loads(path.read_text("utf-8"))["metadata"].get("vae_utils", {})
        if recorded.get("peak_memory_mb"):
            peaks[path.stem[:2]] = recorded["peak_memory_mb"]
    if not peaks:
        raise NotMeasuredError("not recorded yet: make notebooks")
    each = ", ".join(f"{chapter}: {peak / 1000:.2f} GB" for chapter, peak in peaks.items())
    largest = max(peaks.values())
    return [largest / 1000], None, f"recorded when built; {each}; {HUB // largest} learners on {HUB // 1000} GB"

"""What every row stands on: the data, the interleaved clock, the check, helpers in processes of their own."""

import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vae_utils.datasets import load_mnist

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
QUICK = os.environ.get("VAE_UTILS_QUICK", "") not in ("", "0")
ROUNDS = 2 if QUICK else 5

#: name: function that measures the row, in the order of the table.
ROWS = {}


class NotMeasuredError(Exception):
    """What a row needs is not there: a package of the extra `bench`, or a record."""


def row(name, what, against, target, unit="s", at_most=False, of_peak=False, by_chance=False):
    """Register a function as a row.

    The function returns `(ours, theirs, note)`: a value of each in every round, and a remark for the table. `theirs`
    is None where there is nothing to compare with, and `target` then bounds `ours` itself. What comes `by_chance` has
    no ratio, since the next run would have another.
    """

    def register(function):
        def measure():
            facts = {"name": name, "what": what, "against": against, "unit": unit, "target": target}
            try:
                ours, theirs, note = function()
            except NotMeasuredError as error:
                return {**facts, **dict.fromkeys(["ours", "theirs", "ratio", "spread", "met"]), "note": str(error)}
            found = summary(ours, theirs, target, at_most, of_peak)
            return {**facts, **found, **dict.fromkeys(["ratio", "spread"] if by_chance else []), "note": note}

        ROWS[name] = measure
        return function

    return register


def summary(ours, theirs, target, at_most=False, of_peak=False):
    """Medians, the median of the rounds' ratios with their lowest and highest, and whether the target is met.

    The ratio is theirs / ours for times, so that above 1 we are faster, and ours / theirs with `of_peak`.
    """
    result = {"ours": statistics.median(ours), "theirs": None, "ratio": None, "spread": None, "rounds": len(ours)}
    value = result["ours"]
    if theirs is not None:
        ratios = [a / b if of_peak else b / a for a, b in zip(ours, theirs, strict=True)]
        value = statistics.median(ratios)
        result |= {"theirs": statistics.median(theirs), "ratio": value, "spread": [min(ratios), max(ratios)]}
    if target is not None:
        result["met"] = bool(value <= target if at_most else value >= target)
    return {"met": None, **result}


def interleave(ours, theirs, check=None, rounds=None):
    """Time two functions in turn, A B A B, after a warm-up of each and a check that both did the same.

    A function may return its own seconds, as a helper process does.
    """
    ours(), theirs()
    if check:
        check()
    seconds = [], []
    for _ in tqdm(range(rounds or ROUNDS), desc="  rounds", leave=False):
        for function, times in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            answer = function()
            elapsed = time.perf_counter() - start
            times.append(answer if isinstance(answer, float) else elapsed)
    return seconds


def scaled(seconds, factor):
    return [[value * factor for value in values] for values in seconds]


@functools.cache
def digits():
    return load_mnist(fallback="optical-digits")


def images(n):
    """The first `n` training digits, or as many as there are; a fiftieth of them in quick mode."""
    return digits().x_train[: max(n // 50, 256) if QUICK else n]


def close(ours, theirs, what, tolerance):
    """Raise if two values that must agree do not: then one of the two got fast by doing less."""
    if not np.all(np.abs(np.subtract(ours, theirs)) <= tolerance * np.abs(theirs)):
        raise AssertionError(f"{what}: ours {ours}, theirs {theirs}, tolerance {tolerance:.1%}")


class Helper:
    """A module of this package in a process of its own, which runs a round whenever it is asked.

    For each line that it reads, the helper prints one line of JSON, with `seconds` or what else it has to say.
    """

    def __init__(self, module, *arguments, **environment):
        threads = {name: str(CORES) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | threads | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, line=""):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args[-1]} ended with exit code {self.process.wait()}")
        self.last = json.loads(answer)
        return self.last

    def seconds(self):
        return self.ask()["seconds"]


def require(package):
    if importlib.util.find_spec(package) is None:
        raise NotMeasuredError(f"{package} is not installed: pip install -e '.[bench]'")


def run_python(code):
    """Run code in a fresh process; return what it prints, read as JSON."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine():
    """What the numbers stand on."""
    names = ("tensorflow", "tensorflow_cpu", "keras", "numpy", "torch", "jax")
    versions = {}
    for name in names:
        try:
            versions[name.removesuffix("_cpu")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_name(),
        "cores": CORES,
        "threads": CORES,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "data": digits().name,
        "quick": QUICK,
    }


def cpu_name():
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())

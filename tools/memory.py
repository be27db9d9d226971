"""How much memory a process has taken."""

from pathlib import Path

import psutil


def resident(pid=None):
    """Bytes of memory that a process holds now."""
    return psutil.Process(pid).memory_info().rss


def peak(pid=None):
    """The most bytes of memory that a process has held, or None where the system doesn't keep that number.

    psutil has it on Windows only. `ru_maxrss` won't do on Linux: a process inherits it from the one that started it.
    """
    status = Path(f"/proc/{pid or 'self'}/status")
    if status.exists():
        return next(int(row.split()[1]) * 1024 for row in status.read_text().splitlines() if row.startswith("VmHWM"))
    return getattr(psutil.Process(pid).memory_info(), "peak_wset", None)

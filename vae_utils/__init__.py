"""The small module under "Variational autoencoders, every equation executed".

Read it in this order: `distributions`, `layers`, `models`, `evaluation`; `data` and `plotting` stand beside them.
Every loss and log-probability is in nats, and `log` is the natural logarithm.
"""

import importlib
import os

__version__ = "0.1.0"

#: True when the environment variable VAE_UTILS_QUICK is set: notebooks then train less, to run in a minute.
QUICK = os.environ.get("VAE_UTILS_QUICK", "") not in ("", "0")

_MODULES = ("data", "distributions", "evaluation", "layers", "models", "plotting")
__all__ = ["QUICK", *_MODULES]


def __getattr__(name):
    # Modules load on first use, so that `import vae_utils` does not wait for Matplotlib.
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_MODULES])

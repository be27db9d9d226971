"""The small module under "Variational autoencoders, every equation executed".

Read it in this order: `distributions`, `layers`, `likelihoods`, `models`, `architectures`, `evaluation`; `training`,
`datasets` and `plotting` stand beside them. Every loss and log-probability is in nats, and `log` is the natural
logarithm.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version

_HOME = {
    "VAE": "models",
    "dense_vae": "architectures",
    "conv_vae": "architectures",
    "load_pretrained": "architectures",
    "Sampling": "layers",
    "load_mnist": "datasets",
}
_MODULES = (
    *("architectures", "datasets", "distributions", "evaluation", "layers"),
    *("likelihoods", "models", "plotting", "training"),
)
__all__ = [*_HOME, *_MODULES]

try:
    __version__ = version("vae-utils")
except PackageNotFoundError:  # a copy that nobody installed
    __version__ = "unknown"


def __getattr__(name):
    # Modules load on first use, so that `import vae_utils` waits neither for Keras nor for Matplotlib.
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])

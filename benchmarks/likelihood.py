"""Decoding a manifold, and the importance-weighted log p(x)."""

import statistics
import tempfile
from pathlib import Path

import keras
import numpy as np
from scipy.special import logsumexp

from benchmarks import arithmetic
from benchmarks.base import QUICK, close, images, interleave, row, run_python, scaled
from vae_utils import evaluation
from vae_utils.architectures import conv_vae, dense_vae


@row("manifold", "30×30 manifold", "900 predict calls", 100)
def manifold():
    keras.utils.set_random_seed(0)
    vae, part = conv_vae(), 9 if QUICK else 90
    theirs = keras.Sequential([vae.decoder, keras.layers.Activation("sigmoid")])
    ticks = np.linspace(-2, 2, 30, dtype="float32")
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    drawn = {}

    def ours():
        drawn["ours"] = vae.decode(grid)

    def one_by_one():
        drawn["theirs"] = np.concatenate([theirs.predict(z[np.newaxis], verbose=0) for z in grid[:part]])

    def check():
        assert np.abs(drawn["ours"][:part] - drawn["theirs"]).max() < 1e-5

    a, b = interleave(ours, one_by_one, check)
    return a, [value * 900 / part for value in b], f"theirs measured on {part} calls, scaled to 900"


SAMPLES, DIGITS = 5_000, 1_000
OURS_PART, THEIRS_PART = (4, 2) if QUICK else (100, 5)

#: Prints the peak of a fresh process, in MB; Linux keeps it in /proc. The digits come from a file of their own: the
#: 70,000 that `load_mnist` holds would be a third of what is measured.
PEAK = """
import numpy as np
from tools import memory
from vae_utils import evaluation
from vae_utils.architectures import dense_vae
evaluation.log_likelihood(dense_vae(), np.load({path!r}), {samples})
print((memory.peak() or memory.resident()) / 1e6)
"""


def peak_memory(x, samples):
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "x.npy")
        np.save(path, x)
        return run_python(PEAK.format(path=path, samples=samples))


def log_weights_by_predict(encoder, decoder, x, rng):
    """One importance weight per image, as written from the formula, with `predict` for the networks."""
    mean, log_var = encoder.predict(x, verbose=0)[:2]
    epsilon = rng.standard_normal(mean.shape).astype("float32")
    z = mean + np.exp(0.5 * log_var) * epsilon
    logits = decoder.predict(z, verbose=0)
    log_p = (x * logits - np.logaddexp(0, logits)).sum(axis=(1, 2, 3))
    return log_p - 0.5 * (z**2).sum(1) + 0.5 * (epsilon**2 + log_var).sum(1)


@row("log-likelihood", f"log p(x), {SAMPLES:,} samples, {DIGITS:,} digits", "a loop of predict over the samples", 50)
def log_likelihood():
    keras.utils.set_random_seed(0)
    vae, x, rng = dense_vae(), images(DIGITS), np.random.default_rng(0)
    vae.compile("adam")
    vae.fit(images(10_000), batch_size=100, verbose=0)
    found = {}

    def ours():
        evaluation.log_likelihood(vae, x, OURS_PART)

    def theirs():
        log_weights = [log_weights_by_predict(vae.encoder, vae.decoder, x, rng) for _ in range(THEIRS_PART)]
        found["theirs"] = logsumexp(log_weights, axis=0) - np.log(THEIRS_PART)

    def check():  # other noise, the same number of samples: averaged over the digits they agree to a nat or two
        close(evaluation.log_likelihood(vae, x, THEIRS_PART).mean(), found["theirs"].mean(), "log p(x)", 0.02)

    a, b = interleave(ours, theirs, check)
    factor = DIGITS / len(x) * SAMPLES
    peaks = [peak_memory(x, samples) for samples in ((2, 4) if QUICK else (100, 400))]
    alone = arithmetic.decoder_products(vae.decoder, len(x)) * factor
    note = (
        f"measured on {OURS_PART} and {THEIRS_PART} samples, scaled to {SAMPLES:,}; "
        f"peak memory {peaks[0]:.0f} MB, with four times the samples {peaks[1]:.0f} MB, to stay below 1,000 MB; "
    )
    ours_seconds, theirs_seconds = scaled([a], factor / OURS_PART)[0], scaled([b], factor / THEIRS_PART)[0]
    note += arithmetic.were_all_else_free(
        alone, statistics.median(theirs_seconds), "the decoder's products and the softplus"
    )
    return ours_seconds, theirs_seconds, note

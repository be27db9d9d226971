"""Densities and divergences against SciPy, quadrature and Monte Carlo."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import integrate, stats

from vae_utils.distributions import bernoulli_log_prob, gaussian_kl, gaussian_log_prob

CASES = [(0.0, 0.0), (1.5, 0.0), (-0.7, 1.2), (2.0, -3.0), (0.3, -6.0)]


def test_gaussian_log_prob_is_scipys():
    rng = np.random.default_rng(0)
    z, mean, log_var = rng.normal(size=(3, 7, 4))
    expected = stats.norm.logpdf(z, mean, np.exp(log_var / 2)).sum(axis=1)
    rtol = 1e-12 if keras.backend.backend() == "tensorflow" else 1e-6  # Keras' other backends compute in float32
    np.testing.assert_allclose(gaussian_log_prob(z, mean, log_var), expected, rtol=rtol)


@pytest.mark.parametrize(("mean", "log_var"), CASES)
def test_gaussian_kl_is_the_integral(mean, log_var):
    q, p = stats.norm(mean, np.exp(log_var / 2)), stats.norm()

    def integrand(z):
        return q.pdf(z) * (q.logpdf(z) - p.logpdf(z))

    sigma = np.exp(log_var / 2)
    expected, error = integrate.quad(integrand, mean - 12 * sigma, mean + 12 * sigma, epsabs=1e-11, limit=200)
    assert error < 1e-8
    np.testing.assert_allclose(gaussian_kl([mean], [log_var]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mean", "log_var"), CASES[1:])
def test_gaussian_kl_is_the_mean_of_log_ratios(mean, log_var):
    n = 200_000
    z = mean + np.exp(log_var / 2) * np.random.default_rng(1).standard_normal(n)
    ratios = stats.norm.logpdf(z, mean, np.exp(log_var / 2)) - stats.norm.logpdf(z)
    standard_error = ratios.std() / np.sqrt(n)
    # |z| < 4: a correct function fails once in 16,000 draws of the noise, and the seed is fixed.
    assert abs(ratios.mean() - float(gaussian_kl([mean], [log_var]))) < 4 * standard_error


def test_gaussian_kl_sums_over_latent_dimensions_and_keeps_the_others():
    z_mean, z_log_var = np.random.default_rng(2).normal(size=(2, 5, 3, 4)).astype("float32")
    kl = ops.convert_to_numpy(gaussian_kl(z_mean, z_log_var))
    one_by_one = ops.convert_to_numpy(gaussian_kl(z_mean[..., None], z_log_var[..., None]))
    assert kl.shape == (5, 3)
    np.testing.assert_allclose(kl, one_by_one.sum(axis=-1), rtol=1e-5)


def test_gaussian_kl_keeps_its_digits_near_zero():
    # To second order KL = a²/4 for log σ² = a; exp(a) − 1 − a in float32 would give 0 or noise here.
    a = np.float32(1e-4)
    np.testing.assert_allclose(gaussian_kl([np.float32(0)], [a]), a.astype("float64") ** 2 / 4, rtol=2e-2)


def test_bernoulli_log_prob_is_scipys():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 2, (6, 4, 4, 1)).astype("float32")
    logits = rng.normal(scale=3, size=x.shape).astype("float32")
    probabilities = 1 / (1 + np.exp(-logits.astype("float64")))
    expected = stats.bernoulli.logpmf(x, probabilities).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(bernoulli_log_prob(x, logits), expected, rtol=1e-5)


@pytest.mark.parametrize("logit", [-100.0, -1e4, 100.0, 1e4])
def test_bernoulli_log_prob_is_finite_at_extreme_logits(logit):
    x, logits = np.array([[0.0], [1.0]], "float32"), np.full((2, 1), logit, "float32")
    expected = [-max(logit, 0), min(logit, 0)]  # log(1 − p) and log p in the limit
    np.testing.assert_allclose(bernoulli_log_prob(x, logits), expected, rtol=1e-6, atol=1e-42)


def test_bernoulli_log_prob_of_grey_is_keras_cross_entropy_summed():
    rng = np.random.default_rng(4)
    x, logits = rng.random((3, 784), "float32"), rng.normal(size=(3, 784)).astype("float32")
    mean_over_pixels = keras.losses.binary_crossentropy(x, logits, from_logits=True)
    np.testing.assert_allclose(-bernoulli_log_prob(x, logits), 784 * np.array(mean_over_pixels), rtol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gaussian_kl(np.zeros((5, 2)), np.zeros((5, 3))),
        lambda: gaussian_kl(np.float32(0), np.float32(0)),
        lambda: gaussian_log_prob(np.zeros((5, 2)), np.zeros(3), np.zeros(2)),
        lambda: bernoulli_log_prob(np.zeros((5, 4)), np.zeros((5, 3))),
        lambda: bernoulli_log_prob(np.zeros((5, 4, 4, 1)), np.zeros((5, 4, 4))),
        lambda: bernoulli_log_prob(np.zeros(5), np.zeros(5)),
    ],
)
def test_shapes_that_do_not_fit_are_named(call):
    with pytest.raises(ValueError, match=r"Received: .*shape"):
        call()

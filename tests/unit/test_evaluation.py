"""Bounds against models whose log p(x) is known: a linear-Gaussian one exactly, a Bernoulli one by quadrature."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy import integrate, special, stats

from vae_utils.architectures import dense_vae
from vae_utils.evaluation import elbo, grid_log_likelihood, log_likelihood, reconstruction_floor
from vae_utils.likelihoods import Gaussian
from vae_utils.models import VAE

NOISE = 0.5  # standard deviation of x given z
SEEDS = range(0, 8_000, 1_000)  # far apart: on PyTorch, Keras' noise of seed 1 is that of seed 0 one draw later


def tiny_vae(likelihood="bernoulli"):
    """A model of 2×3 images with linear encoder and decoder, and random weights."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2, 3, 1))
    h = layers.Flatten()(inputs)
    z_mean = layers.Dense(2)(h)
    z_log_var = layers.Dense(2)(h)
    z = layers.Add()([z_mean, z_log_var])  # evaluation draws its own z
    encoder = keras.Model(inputs, [z_mean, z_log_var, z])
    latent = keras.Input((2,))
    decoder = keras.Model(latent, layers.Reshape((2, 3, 1))(layers.Dense(6, bias_initializer="random_normal")(latent)))
    return VAE(encoder, decoder, likelihood)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((8, 2, 3, 1)).astype("float32")


@pytest.fixture(scope="module")
def linear_gaussian(x):
    """x = W z + b + noise, whose log p(x) is a Gaussian's log-density: the model, log p(x), W and b."""
    vae = tiny_vae(Gaussian(NOISE))
    dense = vae.decoder.layers[1]
    weights, bias = (np.array(value, "float64") for value in dense.get_weights())
    covariance = weights.T @ weights + NOISE**2 * np.eye(6)
    exact = stats.multivariate_normal(bias, covariance).logpdf(x.reshape(8, 6).astype("float64"))
    return vae, exact, weights, bias


def test_elbo_lies_below_the_exact_log_likelihood(linear_gaussian, x):
    vae, exact, _, _ = linear_gaussian
    bound = elbo(vae, x, num_samples=2_000, seed=1)
    assert (bound < exact).all()
    assert (exact - bound).mean() > 0.1, "an untrained encoder leaves a gap"


def test_the_gap_is_the_divergence_to_the_true_posterior(linear_gaussian, x):
    vae, exact, weights, bias = linear_gaussian
    num_samples = 4_000
    draws = np.stack([elbo(vae, x, num_samples=100, seed=seed) for seed in range(num_samples // 100)])
    bound, standard_error = draws.mean(axis=0), draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    precision = np.eye(2) + weights @ weights.T / NOISE**2
    covariance = np.linalg.inv(precision)
    z_mean, z_log_var = (t.astype("float64") for t in vae.encode(x))
    for i in range(len(x)):
        mean = covariance @ weights @ (x[i].ravel() - bias) / NOISE**2
        difference = mean - z_mean[i]
        variance = np.exp(z_log_var[i])
        divergence = 0.5 * (
            np.trace(precision @ np.diag(variance))
            + difference @ precision @ difference
            - 2
            - np.log(np.linalg.det(precision) * variance.prod())
        )
        # 8 tests, each at 4.5 standard errors of 40 means: a correct function fails once in some 2,000 seeds.
        assert abs(exact[i] - bound[i] - divergence) < 4.5 * standard_error[i]


def test_the_importance_weighted_bound_climbs_to_log_likelihood(linear_gaussian, x):
    vae, exact, _, _ = linear_gaussian
    gaps, errors = [], []
    for k in (1, 10, 100):
        draws = [(exact - log_likelihood(vae, x, num_samples=k, seed=seed)).mean() for seed in range(100)]
        gaps.append(np.mean(draws))
        errors.append(np.std(draws, ddof=1) / 10)
    for i in (0, 1):  # each step up is larger than 4 standard errors of the difference
        assert gaps[i] - gaps[i + 1] > 4 * np.hypot(errors[i], errors[i + 1])
    assert -4 * errors[2] < gaps[2] < 0.1
    last = [log_likelihood(vae, x, num_samples=10_000, seed=seed) for seed in SEEDS]
    standard_error = np.std(last, axis=0, ddof=1) / np.sqrt(8)
    # 8 tests with 7 degrees of freedom; |t| > 8 has a probability of 1e-4 each.
    assert (np.abs(np.mean(last, axis=0) - exact) < 8 * standard_error).all()


def test_more_samples_change_only_the_noise(linear_gaussian, x):
    vae, *_ = linear_gaussian
    singles = [elbo(vae, x, num_samples=1, seed=seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(singles[0], singles[1])
    assert not np.allclose(singles[0], singles[2])
    assert singles[0].shape == (8,)


def test_elbo_ignores_beta(x):
    vae = tiny_vae()
    before = elbo(vae, x)
    vae.beta = 7.0
    np.testing.assert_array_equal(before, elbo(vae, x))


def test_elbo_is_what_evaluate_reports(digits):
    keras.utils.set_random_seed(0)
    vae = dense_vae(hidden=(16,))
    # Means of 3 and small deviations make a KL of 14 nats and little noise, so that leaving it out would show.
    vae.encoder.get_layer("z_mean").bias.assign([3.0, 3.0])
    vae.encoder.get_layer("z_log_var").bias.assign([-6.0, -6.0])
    vae.compile()
    means = [elbo(vae, digits.x_test, seed=seed).mean() for seed in range(20)]
    loss = vae.evaluate(digits.x_test, verbose=0)[0]
    # One draw against the mean of twenty; t with 19 degrees of freedom exceeds 5 once in 12,000.
    assert abs(loss + np.mean(means)) < 5 * np.std(means, ddof=1) * np.sqrt(1 + 1 / 20)
    assert np.std(means, ddof=1) < 1


def test_grid_is_the_integral(x):
    vae = tiny_vae()
    kernel, bias = (np.array(value, "float64") for value in vae.decoder.layers[1].get_weights())
    grid = grid_log_likelihood(vae, x, points=200)
    for i in range(3):
        pixels = x[i].ravel().astype("float64")

        def joint(z1, z0, pixels=pixels):
            logits = np.array([z0, z1]) @ kernel + bias
            log_p = pixels @ logits - np.logaddexp(0, logits).sum()
            return np.exp(log_p - (z0**2 + z1**2) / 2) / (2 * np.pi)

        expected, _ = integrate.dblquad(joint, -8, 8, -8, 8, epsabs=1e-7)
        np.testing.assert_allclose(grid[i], np.log(expected), atol=1e-5)


def test_grid_points_are_the_midpoints_of_their_cells(x):
    """Four cells of side 1 around 0, added up by hand: a fine grid gives the same sum from any point of its cells."""
    vae = tiny_vae()
    kernel, bias = (np.array(value, "float64") for value in vae.decoder.layers[1].get_weights())
    joint = np.zeros(len(x))
    for z in ([-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]):
        logits = z @ kernel + bias
        log_p = x.reshape(len(x), 6) @ logits - np.logaddexp(0, logits).sum()
        joint += np.exp(log_p) * stats.norm.pdf(z).prod()
    np.testing.assert_allclose(grid_log_likelihood(vae, x, points=2, limit=1.0), np.log(joint), rtol=1e-5)


def test_grid_asks_the_likelihood(linear_gaussian, x):
    vae, exact, _, _ = linear_gaussian
    np.testing.assert_allclose(grid_log_likelihood(vae, x, points=100, limit=6.0), exact, atol=1e-3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_every_width_gives_scores_of_32_bits_or_more(x, policy):
    """16 bits move the encoder's and the decoder's numbers by 2⁻⁸ at most, and six pixels by no more than a tenth."""
    reference = tiny_vae()
    expected = grid_log_likelihood(reference, x)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        vae = tiny_vae()
        vae.set_weights(reference.get_weights())
        found = [score(vae, x) for score in (elbo, log_likelihood, grid_log_likelihood)]
        arrays = [*vae.encode(x), vae.decode(np.zeros((3, 2))), vae.sample(3, seed=0), vae.predict(x, verbose=0)]
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_allclose(found[2], expected, atol=0.1 if "16" in policy else 1e-4)
    assert np.isfinite(found).all() and (found[0] < found[2] + 0.5).all()
    assert {array.dtype.name for array in arrays} == {"float64" if policy == "float64" else "float32"}


def test_grid_and_importance_samples_agree(x):
    vae = tiny_vae()
    sampled = np.stack([log_likelihood(vae, x, num_samples=2_000, seed=seed) for seed in SEEDS])
    standard_error = sampled.std(axis=0, ddof=1) / np.sqrt(len(sampled))
    # 8 tests with 7 degrees of freedom; |t| > 8 has a probability of 1e-4 each.
    assert (np.abs(grid_log_likelihood(vae, x) - sampled.mean(axis=0)) < 8 * standard_error).all()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="nothing is compiled there")
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
@pytest.mark.parametrize("score", [elbo, log_likelihood])
def test_many_samples_in_other_precisions_are_near_few(x, score, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        vae = dense_vae(image_shape=(2, 3, 1), hidden=(4,))
        many, few = (score(vae, x, num_samples=n, seed=1) for n in (2_000, 1_000))
    finally:
        keras.config.set_dtype_policy(before)
    # 16,000 draws in all are compiled, 8,000 are not. One draw of these small images varies by less than 2 nats.
    np.testing.assert_allclose(many, few, atol=8 * 2 / np.sqrt(1_000))


def test_every_round_draws_noise_of_its_own(x):
    # For one image 1,000 draws are one round. With the same noise in each, all rounds together would give its value.
    for rounds in (4, 12):  # the second is compiled
        one, all_rounds = (elbo(tiny_vae(), x[:1], n, seed=1) for n in (1_000, 1_000 * rounds))
        assert abs(one - all_rounds) > 1e-4


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="nothing is compiled there")
@pytest.mark.parametrize("score", [elbo, log_likelihood])
def test_many_samples_are_compiled_and_change_by_rounding_only(x, score, monkeypatch):
    import tensorflow as tf

    compiled, called = score(tiny_vae(), x, num_samples=10_000, seed=1), []

    class Eager:
        def __init__(self, function, **_):
            self.get_concrete_function = lambda *given: called.append(given) or function

    monkeypatch.setattr(tf, "function", Eager)
    np.testing.assert_allclose(compiled, score(tiny_vae(), x, num_samples=10_000, seed=1), rtol=1e-5)
    assert len(called) == 1


def test_reconstruction_floor_is_the_entropy(digits):
    x = digits.x_test[:20].astype("float64")
    expected = special.entr(x).sum(axis=(1, 2, 3)) + special.entr(1 - x).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(reconstruction_floor(x), expected, rtol=1e-12)
    np.testing.assert_array_equal(reconstruction_floor(x.round()), 0)
    assert reconstruction_floor(np.full((1, 784), 0.5))[0] == pytest.approx(784 * np.log(2))


@pytest.mark.mnist
def test_published_floor_of_grey_mnist(mnist):
    assert reconstruction_floor(mnist.x_test).mean() == pytest.approx(45.53, abs=0.005)


def test_bad_arguments_are_named(x):
    vae = tiny_vae()
    for call in (elbo, log_likelihood):
        for num_samples in (0, 1.5):
            with pytest.raises(ValueError, match="num_samples"):
                call(vae, x, num_samples=num_samples)
        with pytest.raises(ValueError, match="shape"):
            call(vae, x[..., 0])
    with pytest.raises(ValueError, match="2 latent dimensions"):
        grid_log_likelihood(dense_vae(hidden=(4,), latent_dim=3), np.zeros((1, 28, 28, 1)))
    for bad in ([[1.5]], [[np.nan]], np.zeros((0, 4))):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            reconstruction_floor(bad)

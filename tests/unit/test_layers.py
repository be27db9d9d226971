"""The reparameterization trick: values, distribution, gradients, seeds."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from vae_utils.layers import Sampling, reparameterize

taped = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow has a GradientTape")


def test_reparameterize_is_mean_plus_sigma_times_noise():
    z = reparameterize([[1.0, -2.0]], [[np.log(4.0), 0.0]], [[3.0, 0.5]])
    np.testing.assert_allclose(z, [[1 + 2 * 3, -2 + 0.5]], rtol=1e-6)


def test_reparameterize_broadcasts_a_leading_axis_of_samples():
    epsilon = np.random.default_rng(0).normal(size=(5, 1, 2)).astype("float32")
    assert reparameterize(np.zeros((3, 2), "f"), np.zeros((3, 2), "f"), epsilon).shape == (5, 3, 2)


@taped
def test_gradients_are_those_of_finite_differences_at_fixed_noise():
    rng = np.random.default_rng(1)
    mean, log_var, epsilon = rng.normal(size=(3, 4, 2))

    def f(mean, log_var):  # any smooth function of z
        return tf.reduce_sum(tf.sin(reparameterize(mean, log_var, epsilon)) ** 2)

    variables = [tf.Variable(mean), tf.Variable(log_var)]
    with tf.GradientTape() as tape:
        value = f(*variables)
    for k, gradient in enumerate(tape.gradient(value, variables)):
        for index in np.ndindex(4, 2):
            step = np.zeros((2, 4, 2))
            step[(k, *index)] = 1e-6
            up, down = f(mean + step[0], log_var + step[1]), f(mean - step[0], log_var - step[1])
            np.testing.assert_allclose(gradient[index], (up - down) / 2e-6, rtol=1e-6, atol=1e-8)


@taped
def test_sampling_lets_the_gradient_through():
    layer = Sampling(seed=0)
    z_mean, z_log_var = tf.Variable(tf.zeros((3, 2))), tf.Variable(tf.zeros((3, 2)))
    with tf.GradientTape() as tape:
        z = layer([z_mean, z_log_var])
    by_mean, by_log_var = tape.gradient(z, [z_mean, z_log_var])
    np.testing.assert_array_equal(by_mean, np.ones((3, 2)))
    np.testing.assert_allclose(by_log_var, 0.5 * z, rtol=1e-6)  # dz/d log σ² = ½ σ ε, and z = ε here


def test_sampling_has_the_right_distribution():
    n = 50_000
    z_mean, z_log_var = np.array([0.5, -2.0], "float32"), np.array([0.0, 2 * np.log(3.0)], "float32")
    z = np.array(Sampling(seed=2)([np.tile(z_mean, (n, 1)), np.tile(z_log_var, (n, 1))]))
    for j, sigma in enumerate([1.0, 3.0]):
        # Kolmogorov–Smirnov at level 1e-4, seed fixed.
        assert stats.kstest(z[:, j], stats.norm(z_mean[j], sigma).cdf).pvalue > 1e-4
    correlation = np.corrcoef(z.T)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(n)  # standard error 1/√n; 4 of them


def test_every_example_has_its_own_noise():
    z = np.array(Sampling(seed=3)([np.zeros((1_000, 2), "f"), np.zeros((1_000, 2), "f")]))
    assert len(np.unique(z[:, 0])) > 990


def test_seeds():
    inputs = [np.zeros((4, 2), "f"), np.zeros((4, 2), "f")]
    first, again = Sampling(seed=5), Sampling(seed=5)
    one, two = np.array(first(inputs)), np.array(first(inputs))
    assert not np.array_equal(one, two), "fresh noise at every call"
    np.testing.assert_array_equal(one, again(inputs))
    keras.utils.set_random_seed(7)
    from_global = np.array(Sampling()(inputs))
    keras.utils.set_random_seed(7)
    np.testing.assert_array_equal(from_global, Sampling()(inputs))


def test_sampling_survives_its_config():
    copy = Sampling.from_config(Sampling(seed=5, name="z").get_config())
    assert (copy.seed, copy.name) == (5, "z")


@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros((3, 2), "f"),
        [np.zeros((3, 2), "f")],
        [np.zeros((3, 2), "f"), np.zeros((3, 4), "f")],
        [np.zeros((3, 2), "f"), np.zeros((3, 1, 2), "f")],
    ],
)
def test_bad_inputs_are_named(inputs):
    with pytest.raises(ValueError, match="z_mean"):
        Sampling()(inputs)


def test_shapes_that_do_not_broadcast_are_named():
    with pytest.raises(ValueError, match=r"must have shapes that broadcast.*\(5, 2\)"):
        reparameterize(np.zeros((3, 2), "f"), np.zeros((3, 2), "f"), np.zeros((5, 2), "f"))

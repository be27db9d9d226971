"""Pictures are tested by what they show where: the digit that belongs at a corner must be found there."""

import matplotlib

matplotlib.use("Agg")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

from vae_utils import plotting
from vae_utils.models import dense_vae


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def vae():
    keras.utils.set_random_seed(3)
    return dense_vae(hidden=(16,))


def block(ax, x, y, size=28):
    """The image that a reader sees at data coordinates (x, y)."""
    image = ax.images[0]
    pixels = np.asarray(image.get_array())
    left, right, bottom, top = image.get_extent()
    column = (x - left) / (right - left) * pixels.shape[1]
    row = (y - top) / (bottom - top) * pixels.shape[0]
    i, j = int(row // size) * size, int(column // size) * size
    return pixels[i : i + size, j : j + size]


@pytest.mark.parametrize("quantiles", [False, True])
def test_manifold_corners_are_where_they_belong(vae, quantiles):
    n = 7
    ax = plotting.plot_manifold(vae, n=n, limit=2, quantiles=quantiles)
    edge = 1.6448536269514722 if quantiles else 2.0  # the standard normal's 95 % quantile
    assert ax.get_xlim()[0] < ax.get_xlim()[1] and ax.get_ylim()[0] < ax.get_ylim()[1]
    for i, j in [(0, 0), (0, n - 1), (n - 1, 0), (n - 1, n - 1)]:
        z = [[edge * (2 * i / (n - 1) - 1), edge * (2 * j / (n - 1) - 1)]]
        np.testing.assert_allclose(block(ax, i, j), vae.decode(z)[0, ..., 0], atol=1e-6)
    np.testing.assert_allclose(block(ax, 3, 3), vae.decode([[0, 0]])[0, ..., 0], atol=1e-6)


def test_manifold_ticks_say_where_an_image_lies(vae):
    ax = plotting.plot_manifold(vae, n=5, limit=3)
    labels = [tick.get_text().replace("−", "-") for tick in ax.get_xticklabels()]
    np.testing.assert_allclose([float(label) for label in labels], [-3, -1.5, 0, 1.5, 3])
    np.testing.assert_array_equal(ax.get_xticks(), range(5))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_0$", "$z_1$")


def test_no_tick_says_minus_zero(vae):
    ax = plotting.plot_manifold(vae, n=15, quantiles=True)
    # A table of the standard normal: its quantiles at 5, 30.7, 50, 69.3 and 95 %, to one digit.
    expected = ["−1.6", "−0.5", "0.0", "0.5", "1.6"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == expected
    assert [tick.get_text() for tick in ax.get_yticklabels()] == expected


def test_digits_run_row_by_row(digits):
    ax = plotting.plot_digits(digits.x_test[:7], columns=3)
    shown = np.asarray(ax.images[0].get_array())
    assert shown.shape == (3 * 28, 3 * 28)
    np.testing.assert_array_equal(shown[28:56, 28:56], digits.x_test[4, ..., 0])
    assert not shown[56:, 28:].any(), "the empty places stay blank"


def test_reconstructions_stand_below_their_digits(vae, digits):
    x = digits.x_test[:4]
    shown = np.asarray(plotting.plot_reconstructions(vae, x).images[0].get_array())
    np.testing.assert_array_equal(shown[:28, 28:56], x[1, ..., 0])
    np.testing.assert_allclose(shown[28:, 28:56], vae.predict(x, verbose=0)[1, ..., 0], atol=1e-6)


def test_latent_space_has_a_colour_and_a_legend_entry_for_every_class():
    z = np.random.default_rng(0).normal(size=(50, 3))
    labels = np.arange(50) % 10
    ax = plotting.plot_latent_space(z, labels)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [str(k) for k in range(10)]
    colors = {tuple(collection.get_facecolor()[0][:3]) for collection in ax.collections}
    assert len(colors) == 10
    np.testing.assert_array_equal(ax.collections[4].get_offsets(), z[labels == 4, :2])
    text = next(text for text in ax.texts if text.get_text() == "4")
    np.testing.assert_allclose(text.get_position(), z[labels == 4, :2].mean(axis=0))


def test_history_draws_training_and_held_out():
    history = {"loss": [3.0, 2.0, 1.0], "val_loss": [3.5, 2.5, 1.5], "kl_loss": [0.0, 0.1, 0.2]}
    ax = plotting.plot_history(history)
    assert [line.get_ydata().tolist() for line in ax.lines] == [history["loss"], history["val_loss"]]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])
    assert ax.get_ylabel() == "nats per image"
    assert len(plotting.plot_history(history, "kl_loss").lines) == 1


def test_every_function_draws_on_the_axes_it_is_given(vae, digits):
    x, z = digits.x_test[:4], np.zeros((4, 2))
    calls = [
        lambda ax: plotting.plot_digits(x, ax=ax),
        lambda ax: plotting.plot_reconstructions(vae, x, ax=ax),
        lambda ax: plotting.plot_latent_space(z, [0, 1, 2, 3], ax=ax),
        lambda ax: plotting.plot_manifold(vae, n=2, ax=ax),
        lambda ax: plotting.plot_history({"loss": [1.0]}, ax=ax),
    ]
    for call in calls:
        _, ax = plt.subplots()
        assert call(ax) is ax
        assert len(plt.get_fignums()) == 1
        plt.close("all")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: plotting.plot_digits(np.zeros((28, 28))), "n, height, width"),
        (lambda vae: plotting.plot_digits(np.zeros((0, 28, 28))), "n ≥ 1"),
        (lambda vae: plotting.plot_latent_space(np.zeros((4, 2)), [1, 2]), r"labels.shape=\(2,\)"),
        (lambda vae: plotting.plot_latent_space(np.zeros((2, 2)), [1, 10]), "digits 0 to 9"),
        (lambda vae: plotting.plot_latent_space(np.zeros((4, 1)), [0] * 4), r"z.shape=\(4, 1\)"),
        (lambda vae: plotting.plot_manifold(dense_vae(hidden=(4,), latent_dim=3)), "2 latent dimensions"),
        (lambda vae: plotting.plot_history({"loss": [1]}, "los"), "Received: 'los'"),
        (lambda vae: plotting.plot_reconstructions(vae, np.zeros((2, 28, 28))), "shape"),
    ],
)
def test_bad_arguments_are_named(vae, call, message):
    with pytest.raises(ValueError, match=message):
        call(vae)

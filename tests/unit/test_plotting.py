"""Pictures are tested by what they show where: the digit that belongs at a corner must be found there.

All are rendered, and no warning may come of it.
"""

import matplotlib

matplotlib.use("Agg")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

from vae_utils import plotting
from vae_utils.architectures import dense_vae

pytestmark = pytest.mark.filterwarnings("error")
COLORS = [matplotlib.colors.to_rgb(color) for color in plotting.CLASS_COLORS]


@pytest.fixture(autouse=True)
def draw_and_close_figures():
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


@pytest.fixture(scope="module")
def vae():
    keras.utils.set_random_seed(3)
    return dense_vae(hidden=(16,))


@pytest.fixture(scope="module")
def colour_vae():
    keras.utils.set_random_seed(3)
    return dense_vae((5, 4, 3), hidden=(16,))


@pytest.fixture(scope="module")
def real_vae():
    """Of real-valued images: its decoder's means go far beyond [0, 1]."""
    keras.utils.set_random_seed(3)
    vae = dense_vae((5, 5, 1), hidden=(16,), likelihood="gaussian")
    vae.decoder.set_weights([9 * weight for weight in vae.decoder.get_weights()])
    return vae


def shown(ax):
    return np.asarray(ax.images[0].get_array())


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
    ax = plotting.plot_manifold(vae, n=n, quantiles=quantiles)
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


def test_manifold_in_colour(colour_vae):
    ax = plotting.plot_manifold(colour_vae, n=3, limit=1.5)
    assert shown(ax).shape == (3 * 5, 3 * 4, 3)
    np.testing.assert_allclose(shown(ax)[:5, 8:], colour_vae.decode([[1.5, 1.5]])[0], atol=1e-6)
    np.testing.assert_allclose(shown(ax)[10:, 4:8], colour_vae.decode([[0, -1.5]])[0], atol=1e-6)


def test_manifold_of_one_condition():
    keras.utils.set_random_seed(3)
    vae = dense_vae(hidden=(16,), num_classes=3)
    for label in range(3):
        ax = plotting.plot_manifold(vae, n=2, condition=label)
        np.testing.assert_allclose(block(ax, 1, 0), vae.decode([[2, -2]], label)[0, ..., 0], atol=1e-6)
    with pytest.raises(ValueError, match="needs a `condition`"):
        plotting.plot_manifold(vae, n=2)


def test_digits_run_row_by_row(digits):
    ax = plotting.plot_digits(digits.x_test[:7], columns=3)
    assert shown(ax).shape == (3 * 28, 3 * 28)
    np.testing.assert_array_equal(shown(ax)[28:56, 28:56], digits.x_test[4, ..., 0])
    assert not shown(ax)[56:, 28:].any(), "the empty places stay blank"
    assert ax.images[0].get_cmap().name == "gray_r" and ax.images[0].get_clim() == (0, 1)


def test_few_images_make_one_row_and_need_no_channel():
    x = np.random.default_rng(0).random((2, 3, 4))
    np.testing.assert_array_equal(shown(plotting.plot_digits(x)), np.concatenate([*x], axis=1))


def test_images_in_colour_keep_their_colours_and_their_order():
    x = np.random.default_rng(0).random((5, 3, 4, 3))
    found = shown(plotting.plot_digits(x, columns=2))
    assert found.shape == (9, 8, 3)
    np.testing.assert_array_equal(found[3:6, 4:], x[3])
    np.testing.assert_array_equal(found[6:, 4:], np.ones((3, 4, 3)))  # an empty place is white
    with pytest.raises(ValueError, match=r"Received: \(5, 3, 4, 2\)"):
        plotting.plot_digits(x[..., :2])


@pytest.mark.parametrize("channels", [1, 3])
def test_limits_say_what_is_none_and_what_is_full(channels):
    x = np.linspace(-3, 5, 48 * channels).reshape(3, 4, 4, channels)
    joined = np.concatenate([*x], axis=1)[..., slice(None) if channels == 3 else 0]

    def as_seen(limits):
        found = shown(plotting.plot_digits(x, limits=limits))
        # What lies outside is shown as what lies at the end: grey by the colour map, colour not by itself.
        return found.clip(0, 1) if channels == 1 else found

    np.testing.assert_allclose(as_seen(None), (joined + 3) / 8)
    np.testing.assert_allclose(as_seen((-1, 3)), ((joined + 1) / 4).clip(0, 1))
    np.testing.assert_allclose(as_seen((0, 1)), joined.clip(0, 1))
    assert not shown(plotting.plot_digits(np.full((1, 2, 2), 7), limits=None)).any()  # nothing to tell apart


def test_reconstructions_stand_below_their_images(vae, digits):
    x = digits.x_test[:4]
    ax = plotting.plot_reconstructions(vae, x)
    np.testing.assert_array_equal(shown(ax)[:28, 28:56], x[1, ..., 0])
    np.testing.assert_allclose(shown(ax)[28:, 28:56], vae.predict_on_batch(x)[1, ..., 0], atol=1e-6)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["image", "reconstruction"]
    np.testing.assert_array_equal(ax.get_yticks(), [14, 42])


def test_reconstructions_of_more_than_ten_stay_below_their_images(colour_vae):
    x = np.random.default_rng(0).random((12, 5, 4, 3), "float32")
    found = shown(plotting.plot_reconstructions(colour_vae, x))
    assert found.shape == (10, 48, 3)
    np.testing.assert_allclose(found[:5, 44:], x[11], atol=1e-7)
    np.testing.assert_allclose(found[5:, 44:], colour_vae.predict_on_batch(x)[11], atol=1e-6)


def test_reconstructions_under_their_conditions():
    keras.utils.set_random_seed(3)
    vae = dense_vae((5, 5, 1), hidden=(16,), num_classes=3)
    x, labels = np.random.default_rng(0).random((3, 5, 5, 1), "float32"), np.array([2, 0, 1])
    found = shown(plotting.plot_reconstructions(vae, [x, labels]))
    np.testing.assert_allclose(found[5:, 5:10], vae.predict_on_batch([x, labels])[1, ..., 0], atol=1e-6)


def test_real_valued_images_are_drawn_from_their_least_to_their_greatest_value(real_vae):
    x = np.random.default_rng(0).normal(scale=5, size=(4, 5, 5, 1)).astype("float32")
    both = np.stack([x, real_vae.predict_on_batch(x)])[..., 0]
    assert both.min() < 0 and both.max() > 1
    expected = (both - both.min()) / (both.max() - both.min())
    found = shown(plotting.plot_reconstructions(real_vae, x))
    np.testing.assert_allclose(found[:5, 5:10], expected[0, 1], atol=1e-5)
    np.testing.assert_allclose(found[5:, 5:10], expected[1, 1], atol=1e-5)

    found = shown(plotting.plot_manifold(real_vae, n=2, limit=3))
    z = [[-3, 3], [3, 3], [-3, -3], [3, -3]]
    images = real_vae.decode(z)[..., 0]
    expected = (images - images.min()) / (images.max() - images.min())
    np.testing.assert_allclose(found[:5, 5:], expected[1], atol=1e-5)
    assert (found.min(), found.max()) == pytest.approx((0, 1), abs=1e-6)


def test_the_likelihood_says_where_paper_and_ink_are(vae, digits):
    """Two faint images stay faint: [0, 1] is drawn, not the span that there is."""
    x = digits.x_test[:2] / 4
    assert shown(plotting.plot_reconstructions(vae, x))[:28].max() <= 0.25


def test_latent_space_has_a_colour_and_a_legend_entry_for_every_class():
    z = np.random.default_rng(0).normal(size=(50, 3))
    labels = np.arange(50) % 10
    ax = plotting.plot_latent_space(z, labels)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [str(k) for k in range(10)]
    assert [tuple(collection.get_facecolor()[0][:3]) for collection in ax.collections] == COLORS
    assert len(set(COLORS)) == 10
    np.testing.assert_array_equal(ax.collections[4].get_offsets(), z[labels == 4, :2])
    text = next(text for text in ax.texts if text.get_text() == "4")
    np.testing.assert_allclose(text.get_position(), z[labels == 4, :2].mean(axis=0))
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_aspect()) == ("$z_0$", "$z_1$", 1)


LABELS = {
    "names": (["cat", "dog", "ant"], ["ant", "cat", "dog"], COLORS[:3]),
    "names in an object array": (np.array(["b", "a"], object), ["a", "b"], COLORS[:2]),
    "some digits, which keep their colours": ([7, 3], ["3", "7"], [COLORS[3], COLORS[7]]),
    "digits as floats": (np.arange(10.0), [str(k) for k in range(10)], COLORS),
    "other numbers": ([-1, 20, 3], ["-1", "3", "20"], COLORS[:3]),
    "halves": ([0.5, 1.0], ["0.5", "1"], COLORS[:2]),
    "yes and no": ([True, False], ["False", "True"], COLORS[:2]),
    "15": (np.arange(15), [str(k) for k in range(15)], None),
    "40": (np.arange(40), [str(k) for k in range(40)], None),
}


@pytest.mark.parametrize("kind", LABELS)
def test_classes_of_all_kinds(kind):
    labels, names, colors = LABELS[kind]
    labels = np.concatenate([labels, labels])
    z = np.random.default_rng(0).normal(size=(len(labels), 2))
    ax = plotting.plot_latent_space(z, labels)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == names
    assert [text.get_text() for text in ax.texts] == names
    found = [tuple(collection.get_facecolor()[0][:3]) for collection in ax.collections]
    assert found == colors if colors else len(set(found)) == len(names)
    for name, collection in zip(names, ax.collections, strict=True):
        belongs = np.array([str(label) in (name, f"{name}.0") for label in labels])
        np.testing.assert_array_equal(collection.get_offsets(), z[belongs])


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
        (
            lambda vae: plotting.plot_latent_space(np.zeros((41, 2)), np.arange(41)),
            "40 at most. Received: 41 different",
        ),
        (lambda vae: plotting.plot_latent_space(np.zeros((2, 2)), [1, np.nan]), "Received: NaN among them"),
        (lambda vae: plotting.plot_latent_space([[0, np.nan]], [1]), "finite"),
        (lambda vae: plotting.plot_digits(np.full((1, 2, 2), np.nan)), "Received: 4 values that are NaN"),
        (lambda vae: plotting.plot_digits(np.zeros((1, 2, 2)), columns=0), "`columns` takes positive integers"),
        (lambda vae: plotting.plot_digits(np.zeros((1, 2, 2)), limits=(1, 0)), "the lower first. Received: 1, 0"),
        (lambda vae: plotting.plot_digits(np.full((1, 2, 2), np.inf), limits=None), "`limits` must be two finite"),
        (lambda vae: plotting.plot_manifold(vae, limit=1, quantiles=True), "no `limit`. Received: limit=1"),
        (lambda vae: plotting.plot_manifold(vae, limit=0), "`limit` must be positive and finite. Received: 0"),
        (lambda vae: plotting.plot_manifold(vae, n=0), "`n` takes positive integers"),
        (lambda vae: plotting.plot_manifold(vae, condition=1), "takes no `condition`"),
        (lambda vae: plotting.plot_latent_space(np.zeros((4, 1)), [0] * 4), r"z.shape=\(4, 1\)"),
        (lambda vae: plotting.plot_manifold(dense_vae(hidden=(4,), latent_dim=3)), "2 latent dimensions"),
        (lambda vae: plotting.plot_history({"loss": [1]}, "los"), "Received: 'los'"),
        (lambda vae: plotting.plot_history([1.0]), r"what `fit` returns.*Received: \[1.0\]"),
        (lambda vae: plotting.plot_reconstructions(vae, np.zeros((2, 28, 28))), "shape"),
    ],
)
def test_bad_arguments_are_named(vae, call, message):
    with pytest.raises(ValueError, match=message):
        call(vae)

"""The two architectures for images of every size, with and without a condition; the shipped weights."""

import hashlib
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from vae_utils import architectures, evaluation
from vae_utils.architectures import conv_vae, dense_vae, load_pretrained
from vae_utils.datasets import load_optical_digits
from vae_utils.likelihoods import Gaussian
from vae_utils.models import VAE

FOLDER = Path(architectures.__file__).parent / "weights"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text("utf-8"))
BOTH = pytest.mark.parametrize("build", [dense_vae, conv_vae])


@pytest.fixture
def channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


def test_published_parameter_counts():
    # 784·256+256 + 2·(256·2+2) + 2·256+256 + 256·784+784, by hand
    assert dense_vae().count_params() == 404_244
    assert dense_vae(hidden=(512,)).count_params() == 807_700
    vae = conv_vae()
    assert (vae.encoder.count_params(), vae.decoder.count_params(), vae.count_params()) == (69_076, 65_089, 134_165)


@BOTH
def test_defaults_have_the_published_layers(build):
    vae = build()
    inner = [layer for part in (vae.encoder, vae.decoder) for layer in part.layers if layer.weights]
    kinds = [type(layer).__name__ for layer in inner]
    assert (
        kinds
        == {
            dense_vae: ["Dense"] * 5,
            conv_vae: ["Conv2D"] * 2 + ["Dense"] * 4 + ["Conv2DTranspose"] * 3,
        }[build]
    )
    for layer in inner:
        last = layer.name.startswith(("z_", "logits")) or layer is inner[-1]
        assert layer.activation.__name__ == ("linear" if last else "relu")
        assert type(layer.kernel_initializer).__name__ == ("GlorotUniform" if last else "HeNormal")


def test_the_decoder_has_the_encoders_layers_in_reverse():
    def units(layers):
        return [layer.units for layer in layers if type(layer).__name__ == "Dense"]

    vae = dense_vae((2, 3, 1), hidden=(8, 5), latent_dim=4)
    assert units(vae.encoder.layers) == [8, 5, 4, 4] and units(vae.decoder.layers) == [5, 8, 6]
    vae = conv_vae((8, 8, 1), filters=(3, 5), hidden=7)
    assert [layer.filters for layer in vae.encoder.layers if "conv" in layer.name] == [3, 5]
    assert [layer.filters for layer in vae.decoder.layers if hasattr(layer, "filters")] == [5, 3, 1]
    assert units(vae.encoder.layers) == [7, 2, 2] and units(vae.decoder.layers) == [2 * 2 * 5]


SIZES = [(8, 8, 1), (9, 13, 1), (27, 27, 1), (27, 31, 3), (28, 28, 1), (30, 30, 1), (50, 50, 3)]


@BOTH
@pytest.mark.parametrize("shape", SIZES)
def test_images_of_any_size_go_in_and_come_out(build, shape):
    vae = build(shape, hidden=(8,) if build is dense_vae else 8, latent_dim=3)
    x = np.random.default_rng(0).random((2, *shape), "float32")
    outputs = vae(x)
    assert outputs["z_mean"].shape == outputs["z_log_var"].shape == (2, 3)
    assert outputs["parameters"].shape == (2, *shape) == vae.decode(np.zeros((2, 3))).shape
    assert vae.predict_on_batch(x).shape == (2, *shape)


def test_a_photograph_comes_out():
    vae = conv_vae((218, 178, 3), filters=(4, 4, 4), hidden=4)
    assert vae.decode(np.zeros((1, 2))).shape == (1, 218, 178, 3)


@pytest.mark.parametrize("filters", [(4,), (4, 4), (4, 4, 4)])
@pytest.mark.parametrize("shape", [(9, 13, 1), (27, 31, 3), (30, 28, 1)])
def test_what_is_cropped_is_as_much_on_each_side(shape, filters):
    keras.utils.set_random_seed(0)
    vae = conv_vae(shape, filters=filters)
    z = np.random.default_rng(0).normal(size=(1, 2))
    uncropped = keras.Model(vae.decoder.input, vae.decoder.get_layer("logits").output)(z)
    uncropped, cropped = map(keras.ops.convert_to_numpy, (uncropped, vae.decoder(z)))
    factor = 2 ** len(filters)
    extra = [big - size for big, size in zip(uncropped.shape[1:3], shape, strict=False)]
    assert extra == [-size % factor for size in shape[:2]], "no larger than it must be"
    places = [
        (top, left)
        for top in range(extra[0] + 1)
        for left in range(extra[1] + 1)
        if np.array_equal(uncropped[:, top : top + shape[0], left : left + shape[1]], cropped)
    ]
    [(top, left)] = places
    assert abs(extra[0] - 2 * top) <= 1 and abs(extra[1] - 2 * left) <= 1


def test_images_whose_size_fits_are_not_cropped():
    assert not any("crop" in layer.name for layer in conv_vae().decoder.layers)


def test_images_may_be_vectors_for_the_dense_model():
    assert dense_vae((7,), (4,), likelihood=Gaussian("per_pixel")).sample(3).shape == (3, 7)


@BOTH
@pytest.mark.parametrize("likelihood", ["discretized_logistic", "gaussian"])
def test_the_decoder_gives_what_the_likelihood_takes(build, likelihood):
    vae = build((9, 8, 3), likelihood=likelihood)
    k = {"discretized_logistic": 2, "gaussian": 1}[likelihood]
    assert vae(np.zeros((1, 9, 8, 3)))["parameters"].shape == (1, 9, 8, 3 * k)
    assert vae.sample(1, draw_pixels=True).shape == (1, 9, 8, 3)


def test_the_setting_of_the_image_format_changes_nothing(request, digits):
    x = digits.x_test[:4]

    def all_of_it():
        keras.utils.set_random_seed(0)
        models = [conv_vae((27, 31, 1)), conv_vae(), dense_vae(), load_pretrained("conv-2d")]
        arrays = [weight for vae in models for weight in vae.get_weights() if weight.dtype == "float32"]
        for vae in models[1:]:
            arrays += [*vae.encode(x), vae.predict_on_batch(x)]
        return [*arrays, models[0].decode(np.ones((1, 2)))]

    expected = all_of_it()
    request.getfixturevalue("channels_first")
    for found, array in zip(all_of_it(), expected, strict=True):
        np.testing.assert_array_equal(found, array)
    again = load_optical_digits()
    assert again.x_train.shape == (1437, 28, 28, 1)
    np.testing.assert_array_equal(again.x_test, digits.x_test)


CONDITIONS = {
    "labels": ({"num_classes": 3}, np.array([0, 1, 2, 2]), ()),
    "numbers": ({"condition_dim": 2}, np.array([[0.0, 1], [2, -1], [0.5, 0], [0, 0]]), (2,)),
}


@BOTH
@pytest.mark.parametrize("kind", CONDITIONS)
def test_encoder_and_decoder_both_see_the_condition(build, kind):
    keras.utils.set_random_seed(0)
    options, conditions, shape = CONDITIONS[kind]
    vae = build((9, 8, 1), **options)
    assert vae.condition_shapes == [shape]
    x = np.repeat(np.random.default_rng(0).random((1, 9, 8, 1), "float32"), 4, axis=0)
    z = np.ones((4, 2))
    z_mean, z_log_var = vae.encode([x, conditions])
    for values in (z_mean, z_log_var, vae.decode(z, conditions), vae.predict_on_batch([x, conditions])):
        same = [[np.allclose(a, b, atol=1e-7) for a in values] for b in values]
        assert same == [[np.array_equal(a, b) for a in conditions] for b in conditions]
    # One for all is the same as that one for each; a point has the picture that belongs to its own.
    np.testing.assert_array_equal(vae.decode(z, conditions[1]), vae.decode(z, conditions[[1] * 4]))
    np.testing.assert_allclose(vae.decode(z, conditions)[2], vae.decode(z[:1], conditions[2])[0], atol=1e-6)
    np.testing.assert_array_equal(
        vae.sample(4, condition=conditions[1], seed=0), vae.sample(4, condition=conditions[[1] * 4], seed=0)
    )
    with pytest.raises(ValueError, match="This model needs a `condition`"):
        vae.sample(2)
    with pytest.raises(ValueError, match="This model needs a `condition`"):
        vae.decode(z)
    with pytest.raises(ValueError, match=r"Pass \[images, condition\]"):
        vae.encode(x)
    with pytest.raises(ValueError, match="`condition` must hold finite values in the shape"):
        vae.sample(3, condition=conditions)


def test_a_model_without_a_condition_takes_none():
    vae = dense_vae((2, 2, 1), (2,))
    for call in (lambda: vae.sample(2, condition=1), lambda: vae.decode(np.zeros((2, 2)), [0, 1])):
        with pytest.raises(ValueError, match="This model takes no `condition`"):
            call()
    with pytest.raises(ValueError, match="Pass one array of images"):
        vae.encode([np.zeros((2, 2, 2, 1)), np.zeros(2)])


def test_a_label_is_a_one_among_zeros():
    vae = dense_vae((1, 1, 1), (), num_classes=4)
    # Without hidden layers a mean is pixel · w₀ + w_label, and the logit is z · w + w_label.
    for model, label_free, output in ((vae.encoder, 1, "z_mean"), (vae.decoder, 2, None)):
        dense = model.get_layer(output) if output else model.layers[-2]
        kernel, bias = dense.get_weights()
        bias = bias + 1
        dense.set_weights([kernel, bias])
        given = np.zeros((4, *model.inputs[0].shape[1:]))
        found = model([given, np.arange(4)])
        found = keras.ops.convert_to_numpy(found[0] if output else found).reshape(4, -1)
        np.testing.assert_allclose(found, kernel[label_free:] + bias, rtol=1e-6)


def test_after_training_a_sample_shows_the_class_that_was_asked_for():
    keras.utils.set_random_seed(0)
    shapes = np.zeros((3, 8, 8, 1), "float32")
    shapes[0, :4], shapes[1, :, :4], shapes[2, 2:6, 2:6] = 1, 1, 1
    labels = np.arange(9_000) % 3
    vae = dense_vae((8, 8, 1), hidden=(16,), num_classes=3)
    vae.compile(keras.optimizers.Adam(0.02), jit_compile=False)
    vae.fit([shapes[labels], labels], batch_size=32, verbose=0)

    def nearest(images):
        return np.abs(images[:, None] - shapes).sum(axis=(2, 3, 4)).argmin(axis=1).tolist()

    for label in range(3):
        assert nearest(vae.sample(20, condition=label, seed=0)) == [label] * 20
    assert nearest(vae.sample(3, condition=[2, 0, 1], seed=0)) == [2, 0, 1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: dense_vae(num_classes=3, condition_dim=2), "a label or numbers.*num_classes=3, condition_dim=2"),
        (lambda: conv_vae(num_classes=3, condition_dim=2), "a label or numbers.*num_classes=3, condition_dim=2"),
        (lambda: dense_vae(num_classes=0), "`num_classes` takes positive integers. Received: 0"),
        (lambda: conv_vae(condition_dim=1.5), "`condition_dim` takes positive integers. Received: 1.5"),
        (lambda: dense_vae(hidden=256), "`hidden` must be a list or a tuple"),
        (lambda: dense_vae(hidden=(256, -1)), "`hidden` takes positive integers. Received: -1"),
        (lambda: dense_vae(latent_dim=0), "`latent_dim` takes positive integers. Received: 0"),
        (lambda: dense_vae(image_shape=(28, 28.0)), "`image_shape` takes positive integers. Received: 28.0"),
        (lambda: conv_vae(filters=(0,)), "`filters` takes positive integers. Received: 0"),
        (lambda: conv_vae(hidden=(16,)), r"`hidden` takes positive integers. Received: \(16,\)"),
        (lambda: conv_vae(image_shape=(28, 28)), r"\(height, width, channels\). Received: \(28, 28\)"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_manifest_and_files_match():
    assert {path.name for path in FOLDER.iterdir()} == {"manifest.json"} | {f"{name}.weights.h5" for name in MANIFEST}
    for name, entry in MANIFEST.items():
        assert hashlib.sha256((FOLDER / f"{name}.weights.h5").read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("name", MANIFEST)
def test_loads(name):
    vae = load_pretrained(name)
    assert isinstance(vae, VAE) and vae.count_params() == MANIFEST[name]["parameters"]
    assert vae.sample(2, seed=0).shape == (2, 28, 28, 1)


@pytest.mark.mnist
@pytest.mark.parametrize("name", MANIFEST)
def test_reaches_what_the_manifest_says(name, mnist):
    vae = load_pretrained(name)
    first, other = (-evaluation.elbo(vae, mnist.x_test, num_samples=10, seed=seed) for seed in (0, 1))
    # Four digits where the noise is the manifest's; a backend with other noise for the same seed: 4 standard errors.
    four_errors = 4 * np.std(first - other, ddof=1) / np.sqrt(len(first))
    tolerance = 0.01 if keras.backend.backend() == "tensorflow" else four_errors
    assert first.mean() == pytest.approx(MANIFEST[name]["test_negative_elbo"], abs=tolerance)
    assert four_errors < 0.1


def test_unknown_names_and_other_files_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="Received: 'conv-3d'"):
        load_pretrained("conv-3d")
    damaged = {name: {**entry, "sha256": "0" * 64} for name, entry in MANIFEST.items()}
    monkeypatch.setattr(json, "loads", lambda text: damaged)
    with pytest.raises(ValueError, match="not the file in the manifest"):
        load_pretrained(next(iter(MANIFEST)))

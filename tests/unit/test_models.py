"""VAE as a Keras model in full standing: fit, evaluate, predict, save, load, callbacks, compiled steps, seeds."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from vae_utils.architectures import conv_vae, dense_vae
from vae_utils.distributions import gaussian_kl
from vae_utils.models import VAE

not_on_torch = pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="several steps per execution it refuses, and compiling takes a C++ compiler",
)


@pytest.fixture(scope="module")
def images(digits):
    return digits.x_train[:200]


@pytest.fixture
def vae():
    keras.utils.set_random_seed(0)
    vae = dense_vae(hidden=(16,))
    vae.compile(keras.optimizers.Adam(1e-3))
    return vae


def small_vae(**options):
    keras.utils.set_random_seed(1)
    vae = dense_vae(hidden=(16,))
    vae.compile(keras.optimizers.Adam(1e-3), **options)
    return vae


def weights_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_published_parameter_counts():
    # 784·256+256 + 2·(256·2+2) + 2·256+256 + 256·784+784, by hand
    assert dense_vae().count_params() == 404_244
    assert dense_vae(hidden=(512,)).count_params() == 807_700
    vae = conv_vae()
    assert (vae.encoder.count_params(), vae.decoder.count_params(), vae.count_params()) == (69_076, 65_089, 134_165)


@pytest.mark.parametrize("build", [dense_vae, conv_vae])
@pytest.mark.parametrize("shape", [(28, 28, 1), (16, 32, 3)])
def test_encoder_and_decoder_are_interchangeable(build, shape):
    vae = build(image_shape=shape, latent_dim=5)
    outputs = vae(np.zeros((3, *shape), "float32"))
    assert outputs["z_mean"].shape == outputs["z_log_var"].shape == (3, 5)
    assert outputs["parameters"].shape == vae.decode(np.zeros((3, 5))).shape == (3, *shape)


def test_loss_is_a_sum_written_by_hand(vae, images):
    x = images[:1]
    outputs = {name: keras.ops.convert_to_numpy(value).astype("float64") for name, value in vae(x).items()}
    loss = float(vae.compute_loss(x, y_pred=outputs))
    p = 1 / (1 + np.exp(-outputs["parameters"]))
    reconstruction = kl = 0.0
    for pixel, probability in zip(x.ravel(), p.ravel(), strict=True):
        reconstruction -= pixel * np.log(probability) + (1 - pixel) * np.log(1 - probability)
    for mean, log_var in zip(outputs["z_mean"][0], outputs["z_log_var"][0], strict=True):
        kl += 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var)
    np.testing.assert_allclose(loss, reconstruction + kl, rtol=1e-5)
    np.testing.assert_allclose(vae.reconstruction_tracker.result(), reconstruction, rtol=1e-5)
    np.testing.assert_allclose(vae.kl_tracker.result(), kl, rtol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_metrics_add_up_also_over_a_last_partial_batch(vae, images, beta):
    vae.beta = beta
    scores = vae.evaluate(images, batch_size=64, verbose=0, return_dict=True)
    assert set(scores) == {"loss", "reconstruction_loss", "kl_loss"}
    expected = scores["reconstruction_loss"] + beta * scores["kl_loss"]
    np.testing.assert_allclose(scores["loss"], expected, rtol=1e-5)


def test_fit_takes_arrays_datasets_and_validation_data(vae, images):
    history = vae.fit(images, validation_data=images[:50], epochs=2, verbose=0).history
    names = {"loss", "reconstruction_loss", "kl_loss"}
    assert set(history) == names | {f"val_{name}" for name in names}
    assert history["loss"][1] < history["loss"][0]
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(50)
    vae.fit(dataset, validation_data=dataset, verbose=0)
    vae.fit(images, validation_split=0.2, verbose=0)
    vae.fit(images, images, validation_data=(images, images), verbose=0)
    np.testing.assert_allclose(
        vae.evaluate(dataset, verbose=0), vae.evaluate(images, batch_size=50, verbose=0), rtol=1e-5
    )


def test_predict_reconstructs_from_the_mean(vae, images):
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(50)
    predicted = vae.predict(images, verbose=0)
    assert predicted.shape == images.shape and predicted.min() >= 0 and predicted.max() <= 1
    np.testing.assert_allclose(predicted, vae.decode(vae.encode(images)[0]), atol=1e-6)
    np.testing.assert_allclose(predicted, vae.predict(dataset, verbose=0), atol=1e-6)
    np.testing.assert_allclose(vae.encode(dataset)[0], vae.encode(images)[0], atol=1e-6)


def test_decode_gives_probabilities(vae):
    z = np.random.default_rng(0).normal(size=(7, 2))
    logits = keras.ops.convert_to_numpy(vae.decoder(z)).astype("float64")
    np.testing.assert_allclose(vae.decode(z, batch_size=3), 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_sample_decodes_standard_normal_noise():
    identity = keras.Input((2,))
    encoder_input = keras.Input((2, 1, 1))
    flat = keras.layers.Flatten()(encoder_input)
    encoder = keras.Model(encoder_input, [keras.layers.Dense(2)(flat) for _ in range(3)])
    vae = VAE(encoder, keras.Model(identity, keras.layers.Reshape((2, 1, 1))(identity)))
    p = vae.sample(20_000, seed=3).reshape(-1, 2)
    z = np.log(p / (1 - p))  # this decoder's logits are z itself
    for j in range(2):
        assert stats.kstest(z[:, j], "norm").pvalue > 1e-4  # level 1e-4, seed fixed
    np.testing.assert_array_equal(vae.sample(5, seed=3), vae.sample(5, seed=3))
    assert not np.array_equal(vae.sample(5, seed=3), vae.sample(5, seed=4))


def test_saved_and_loaded_in_safe_mode_it_evaluates_the_same(vae, images, tmp_path):
    vae.beta = 0.25
    vae.fit(images, verbose=0)
    before = vae.evaluate(images, verbose=0)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras", safe_mode=True)
    assert isinstance(loaded, VAE) and loaded.beta == 0.25
    assert loaded.evaluate(images, verbose=0) == before
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), vae.predict(images, verbose=0))
    loaded.fit(images, verbose=0)


def test_weights_can_be_saved_alone(vae, images, tmp_path):
    vae.save_weights(tmp_path / "vae.weights.h5")
    other = dense_vae(hidden=(16,))
    other.load_weights(tmp_path / "vae.weights.h5")
    assert weights_equal(vae, other)


def test_evaluate_draws_the_same_noise_and_leaves_training_noise_alone(images):
    first, second = small_vae(), small_vae()
    assert first.evaluate(images, verbose=0) == first.evaluate(images, verbose=0)
    for vae, options in ((first, {"validation_data": images[:50]}), (second, {})):
        keras.utils.set_random_seed(2)  # the order of the images
        # On PyTorch, validating draws from the generator that shuffles.
        vae.fit(images, epochs=2, shuffle=keras.backend.backend() != "torch", verbose=0, **options)
    assert weights_equal(first, second)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"jit_compile": True, "steps_per_execution": 4}, marks=not_on_torch)]
)
def test_same_seed_same_weights_bit_for_bit(images, options):
    trained = []
    for _ in range(2):
        vae = small_vae(**options)
        vae.fit(images, epochs=2, verbose=0)
        trained.append(vae)
    assert weights_equal(*trained)
    assert not weights_equal(trained[0], small_vae())


def test_convolutional_training_repeats_bit_for_bit(images):
    trained = []
    for _ in range(2):
        keras.utils.set_random_seed(2)
        vae = conv_vae(filters=(8, 8))
        vae.compile("adam")
        vae.fit(images, verbose=0)
        trained.append(vae)
    assert weights_equal(*trained)


@not_on_torch
def test_several_steps_per_execution_give_the_loss_of_single_ones(images):
    histories = [
        small_vae(**options).fit(images, batch_size=50, epochs=3, shuffle=False, verbose=0).history["loss"]
        for options in ({"jit_compile": False}, {"jit_compile": False, "steps_per_execution": 4})
    ]
    np.testing.assert_allclose(*histories, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, pytest.param({"jit_compile": True}, marks=not_on_torch)])
def test_a_callback_changes_beta_during_training(images, options):
    vae = small_vae(**options)
    seen = []

    class WarmUp(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.beta = float(epoch)

        def on_epoch_end(self, epoch, logs=None):
            seen.append((logs["loss"] - logs["reconstruction_loss"]) / logs["kl_loss"])

    vae.fit(images, batch_size=50, epochs=3, callbacks=[WarmUp()], verbose=0)
    # The quotient of a difference of losses near 500, rounded to 3e-5 each, and a KL that may be 0.01.
    np.testing.assert_allclose(seen, [0, 1, 2], atol=2e-2)


def test_a_callback_changes_beta_between_batches(vae, images):
    sums = []

    class Raise(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.beta = 3.0 * batch

        def on_train_batch_end(self, batch, logs=None):  # the logs are means over the batches so far
            sums.append([(batch + 1) * (logs["loss"] - logs["reconstruction_loss"]), (batch + 1) * logs["kl_loss"]])

    vae.fit(images, batch_size=100, callbacks=[Raise()], verbose=0)
    (weighted_0, kl_0), (weighted_1, kl_1) = sums
    np.testing.assert_allclose([weighted_0, (weighted_1 - weighted_0) / (kl_1 - kl_0)], [0, 3], atol=2e-2)


def test_early_stopping_restores_the_best_weights(vae, images):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                decoder = self.model.decoder
                decoder.set_weights([weight + 1 for weight in decoder.get_weights()])

    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    fitted = vae.fit(images, validation_data=images[:50], epochs=9, callbacks=[Spoil(), stop], verbose=0)
    losses = fitted.history["val_loss"]
    assert len(losses) == 3 and losses[2] > losses[1]
    np.testing.assert_allclose(vae.evaluate(images[:50], verbose=0)[0], losses[1], rtol=1e-5)


def test_sample_weights_weigh_examples(vae, images):
    weights = np.repeat([3.0, 0.0], [50, 150]).astype("float32")
    for y in (None, images):
        weighted = vae.evaluate(images, y, sample_weight=weights, batch_size=200, verbose=0, return_dict=True)
        terms = vae(images)  # its noise differs: compare the term without noise
        kl = keras.ops.convert_to_numpy(gaussian_kl(terms["z_mean"], terms["z_log_var"]))
        np.testing.assert_allclose(weighted["kl_loss"], np.mean(weights * kl), rtol=1e-4)
        np.testing.assert_allclose(weighted["loss"], weighted["reconstruction_loss"] + weighted["kl_loss"], rtol=1e-5)
    vae.fit(images, sample_weight=weights, verbose=0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only tf.data tunes")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [64, 50])  # with a smaller last batch, and without: then the shape is static
def test_an_array_takes_the_steps_that_it_takes_in_keras_and_no_tuner_waits(images, monkeypatch, batch_size, shuffle):
    keras_fit, given = keras.Model.fit, []
    monkeypatch.setattr(keras.Model, "fit", lambda self, x, *args: given.append(x) or keras_fit(self, x, *args))
    ours, theirs = small_vae(), small_vae()
    options = {"batch_size": batch_size, "epochs": 3, "validation_data": images[:50], "verbose": 0}
    for vae, fit in ((ours, VAE.fit), (theirs, keras_fit)):
        keras.utils.set_random_seed(2)
        fit(vae, images, shuffle=shuffle, **options)
    assert weights_equal(ours, theirs)
    assert given[0].element_spec.shape[0] == (50 if batch_size == 50 else None)
    assert not given[0].options().autotune.enabled


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow keeps them")
def test_a_deleted_model_leaves_no_compiled_step(images):
    def count():
        gc.collect()
        return sum(type(thing).__name__ == "FuncGraph" for thing in gc.get_objects())

    before = count()
    vae = small_vae(steps_per_execution=2)
    vae.fit(images, batch_size=64, validation_data=images[:50], verbose=0)
    assert count() > before
    del vae
    assert count() == before


def test_predict_on_batch_is_predict(vae, images):
    np.testing.assert_allclose(vae.predict_on_batch(images[:9]), vae.predict(images[:9], verbose=0), atol=1e-6)


def test_evaluate_repeats_with_any_sampling_layer(images):
    class Own(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.noise = keras.random.SeedGenerator(7)

        def call(self, mean):
            return mean + keras.random.normal(keras.ops.shape(mean), seed=self.noise)

    base = dense_vae(hidden=(16,))
    x = base.encoder.input
    z_mean, z_log_var, _ = base.encoder.outputs
    vae = VAE(keras.Model(x, [z_mean, z_log_var, Own()(z_mean)]), base.decoder)
    vae.compile()
    assert vae.evaluate(images, verbose=0) == vae.evaluate(images, verbose=0)


BAD_IMAGES = {
    "bytes": (lambda x: x * 255, "Divide by 255"),
    "negative": (lambda x: x - 0.5, "values from -0.5"),
    "NaN": (lambda x: np.where(x == x.max(), np.nan, x), "NaN"),
    "no channel": (lambda x: x[..., 0], r"\(n, 28, 28, 1\).*\(20, 28, 28\)"),
    "one image": (lambda x: x[0], r"Received: \(28, 28, 1\)"),
    "none": (lambda x: x[:0], r"Received: \(0, 28, 28, 1\)"),
}


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "encode"])
@pytest.mark.parametrize("fault", BAD_IMAGES)
def test_bad_images_are_named_before_anything_starts(vae, images, method, fault):
    spoil, message = BAD_IMAGES[fault]
    with pytest.raises(ValueError, match=message):
        getattr(vae, method)(spoil(images[:20]))


def test_bad_validation_images_are_named_before_training(vae, images):
    before = vae.get_weights()
    for validation_data in (images * 255, (images * 255,), [images * 255, images]):
        with pytest.raises(ValueError, match="Divide by 255"):
            vae.fit(images, validation_data=validation_data, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, vae.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: vae.decode(np.zeros((3, 5))), r"\(n, 2\).*\(3, 5\)"),
        (lambda vae: vae.decode(np.zeros(2)), r"\(n, 2\).*\(2,\)"),
        (lambda vae: vae.decode(np.full((1, 2), np.nan)), "finite"),
        (lambda vae: vae.sample(0), "positive integer"),
        (lambda vae: vae.sample(2.5), "positive integer"),
        (lambda vae: setattr(vae, "beta", -1), "negative"),
        (lambda vae: setattr(vae, "beta", float("nan")), "negative"),
        (lambda vae: setattr(vae, "beta", float("inf")), "finite"),
        (lambda vae: vae.encode([np.zeros((28, 28, 1))]), "one array.*list"),
        (lambda vae: vae.encode(np.full((1, 28, 28, 1), "x")), "numbers"),
        (lambda vae: vae.decode(np.zeros((0, 2))), r"\(0, 2\)"),
        (lambda vae: dense_vae(hidden=256), "hidden"),
        (lambda vae: dense_vae(latent_dim=0), "latent_dim"),
        (lambda vae: dense_vae(hidden=(256, -1)), "hidden"),
        (lambda vae: dense_vae(image_shape=(28, 28.0)), "image_shape"),
        (lambda vae: conv_vae(filters=(0,)), "filters"),
        (lambda vae: conv_vae(image_shape=(28, 28)), "image_shape"),
        (lambda vae: VAE(vae.encoder, dense_vae(latent_dim=3).decoder), "z_mean, z_log_var, z"),
        (lambda vae: VAE(vae.decoder, vae.decoder), "z_mean, z_log_var, z"),
        (lambda vae: VAE(vae.encoder, dense_vae((14, 14, 1)).decoder), r"must give .*28, 28, 1.*14, 14, 1"),
    ],
)
def test_bad_arguments_are_named(vae, call, message):
    with pytest.raises(ValueError, match=message):
        call(vae)


# What an argument cannot mean is refused; what a user adds counts.


@pytest.mark.parametrize(
    "options", [{"loss": "mse"}, {"loss": keras.losses.MeanSquaredError()}, {"loss_weights": [2.0]}]
)
def test_another_loss_is_refused_with_the_cure(vae, options):
    with pytest.raises(ValueError, match=r"leave out `loss`.*`likelihood=`.*Received: loss="):
        vae.compile("adam", **options)


def test_targets_that_are_not_the_images_are_refused(vae, images):
    for call in (vae.fit, vae.evaluate, vae.train_on_batch, vae.test_on_batch):
        with pytest.raises(ValueError, match="`y` means nothing here"):
            call(images, np.zeros_like(images))
        with pytest.raises(ValueError, match="`y` means nothing here"):
            call(images, np.arange(200))
        call(images, images)


def test_targets_that_something_uses_are_taken(images):
    vae = small_vae(metrics={"parameters": "mse"})
    assert "parameters_mse" in vae.fit(images, images * 0.5, verbose=0).history
    labels = np.repeat([0, 1], 100)
    vae = small_vae()
    vae.fit(images, labels, class_weight={0: 0.0, 1: 0.0}, verbose=0)
    assert weights_equal(vae, small_vae()), "weights of 0 leave nothing to learn"


def test_penalties_of_the_layers_are_part_of_the_loss(images):
    """An L2 penalty of 0.5 on the decoder's last kernel, added up by hand, in training and in evaluation."""
    base = dense_vae(hidden=(16,))
    z = keras.Input((2,))
    kernel = keras.layers.Dense(784, kernel_regularizer=keras.regularizers.L2(0.5))
    vae = VAE(base.encoder, keras.Model(z, keras.layers.Reshape((28, 28, 1))(kernel(z))), beta=0.25)
    vae.compile(keras.optimizers.SGD(0.0))
    penalty = 0.5 * np.sum(kernel.get_weights()[0].astype("float64") ** 2)
    assert penalty > 1
    for scores in (
        vae.evaluate(images, verbose=0, return_dict=True),
        {name: values[0] for name, values in vae.fit(images, verbose=0).history.items()},
    ):
        terms = scores["reconstruction_loss"] + 0.25 * scores["kl_loss"]
        # Differences of numbers near 545, which have a step of 6e-5.
        np.testing.assert_allclose(scores["loss"] - terms, penalty, atol=1e-3)


def test_variables_are_the_trainable_and_the_others(vae):
    parts = vae.trainable_variables + vae.non_trainable_variables
    assert sorted(map(id, vae.variables)) == sorted(map(id, parts))
    assert len({id(variable) for variable in vae.variables}) == len(vae.variables)
    assert sum(np.prod(variable.shape) for variable in vae.trainable_variables) == vae.count_params()


def test_beta_takes_numbers_only(vae):
    for value in (keras.Variable(0.5), keras.ops.ones(()), "1", None, [1.0], np.ones(1)):
        with pytest.raises(ValueError, match="`beta` must be a number"):
            vae.beta = value
        assert vae.beta == 1.0


def test_a_fit_leaves_the_users_objects_as_they_were(vae, images):
    vae.optimizer.build(vae.trainable_variables)
    before = [set(vars(thing)) for thing in (vae, vae.optimizer)]
    callbacks = []
    vae.fit(images, callbacks=callbacks, validation_data=images[:50], verbose=0)
    vae.fit(images, callbacks=callbacks, verbose=0)
    added = [set(vars(thing)) - names for thing, names in zip((vae, vae.optimizer), before, strict=True)]
    assert not added[1] and not callbacks
    keras_alone = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Dense(1)])
    keras_alone.compile("adam", "mse")
    names = set(vars(keras_alone))
    keras_alone.fit(images, images, validation_data=(images[:50], images[:50]), verbose=0)
    assert added[0] <= set(vars(keras_alone)) - names | {"_eval_epoch_iterator"}


def test_drawn_pixels_have_the_means_that_sample_shows(vae):
    means, pixels = (vae.sample(400, seed=5, draw_pixels=draw) for draw in (False, True))
    assert set(np.unique(pixels)) == {0.0, 1.0}
    z = (pixels - means).sum() / np.sqrt((means * (1 - means)).sum())
    assert abs(z) < 4  # a standard normal number, beyond 4 once in 16,000 seeds
    np.testing.assert_array_equal(pixels, vae.sample(400, seed=5, draw_pixels=True))
    # Were pixels drawn from the numbers that z was drawn from, those of the first dimensions would follow z.
    assert abs(np.corrcoef(pixels[:, 0, 0, 0] - means[:, 0, 0, 0], means[:, 0, 1, 0])[0, 1]) < 4 / np.sqrt(400)

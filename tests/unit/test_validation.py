"""What is refused, and in which words; above all, a decoder that does not fit its likelihood."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from vae_utils import _validation as validation
from vae_utils import likelihoods
from vae_utils.layers import Sampling
from vae_utils.models import VAE

SHAPE = (4, 4, 1)


def encoder(shape=SHAPE, condition=None):
    inputs = [keras.Input(shape), *([] if condition is None else [keras.Input(condition)])]
    x = layers.Flatten()(inputs[0])
    if condition is not None:
        x = layers.Concatenate()([x, layers.Reshape((-1,))(inputs[1])])
    z_mean, z_log_var = layers.Dense(2)(x), layers.Dense(2)(x)
    return keras.Model(
        inputs if condition is not None else inputs[0], [z_mean, z_log_var, Sampling()([z_mean, z_log_var])]
    )


def decoder(*parts, condition=None):
    """z through the parts; the last one must give images."""
    inputs = [keras.Input((2,)), *([] if condition is None else [keras.Input(condition)])]
    x = inputs[0]
    if condition is not None:
        x = layers.Concatenate()([x, layers.Reshape((-1,))(inputs[1])])
    for part in parts:
        x = part(x)
    return keras.Model(inputs if condition is not None else inputs[0], x)


def reshape(*shape):
    return layers.Reshape(shape or SHAPE)


def sequential(*parts, inputs=2):
    return keras.Sequential([keras.Input((inputs,)), *parts])


def dense(activation, units=16):
    return layers.Dense(units, activation)


def cast(x):
    return ops.cast(x, "float32")


#: What the message calls the activation, and a decoder's parts.
ENDS_IN_AN_ACTIVATION = {
    "Dense": ("sigmoid", lambda: [dense("sigmoid"), reshape()]),
    "Conv2D": ("sigmoid", lambda: [dense(None), reshape(), layers.Conv2D(1, 1, activation="sigmoid")]),
    "Activation": ("sigmoid", lambda: [dense(None), layers.Activation("sigmoid"), reshape()]),
    "operation": ("Sigmoid", lambda: [dense(None), reshape(), ops.sigmoid]),
    "cropped": ("sigmoid", lambda: [dense("sigmoid", 36), reshape(6, 6, 1), layers.Cropping2D(1)]),
    "transposed": ("sigmoid", lambda: [dense("sigmoid"), reshape(), layers.Permute((2, 1, 3))]),
    "ops.reshape": ("sigmoid", lambda: [dense("sigmoid"), lambda x: ops.reshape(x, (-1, *SHAPE))]),
    "in 32 bits": ("sigmoid", lambda: [dense("sigmoid"), reshape(), layers.Activation("linear", dtype="float32")]),
    "cast": ("sigmoid", lambda: [dense("sigmoid"), reshape(), cast]),
    "another axis": ("sigmoid", lambda: [dense("sigmoid"), reshape(4, 4), lambda x: ops.expand_dims(x, -1)]),
    "model in a model": ("sigmoid", lambda: [decoder(dense("sigmoid")), reshape()]),
    "Sequential in a model": ("sigmoid", lambda: [sequential(dense("sigmoid"), reshape())]),
    "reshaped in a model": ("sigmoid", lambda: [dense("sigmoid"), sequential(reshape(), inputs=16)]),
    "tanh": ("tanh", lambda: [dense("tanh"), reshape()]),
    "ReLU": ("ReLU", lambda: [dense(None), layers.ReLU(), reshape()]),
}


@pytest.mark.parametrize("end", ENDS_IN_AN_ACTIVATION)
def test_a_decoder_that_ends_in_an_activation_is_refused_for_logits_only(end):
    activation, make_parts = ENDS_IN_AN_ACTIVATION[end]
    parts = encoder(), decoder(*make_parts())
    for likelihood, name in (("bernoulli", "Bernoulli"), ("continuous_bernoulli", "ContinuousBernoulli")):
        with pytest.raises(ValueError) as caught:
            VAE(*parts, likelihood)
        assert str(caught.value) == (
            f"{name} takes logits, which may be any real number, and applies the sigmoid itself: leave out the "
            f"activation at the decoder's end. Received: a decoder that ends in `{activation}`"
        )
    assert VAE(*parts, "gaussian").image_shape == SHAPE  # its means may well be probabilities


def test_a_sigmoid_is_found_in_decoders_of_other_kinds():
    with pytest.raises(ValueError, match="ends in `sigmoid`"):
        VAE(encoder(), sequential(dense("sigmoid"), reshape()))
    with pytest.raises(ValueError, match="ends in `sigmoid`"):
        VAE(encoder(condition=(3,)), decoder(dense("sigmoid"), reshape(), condition=(3,)))


@pytest.mark.parametrize(
    "parts",
    [
        lambda: [layers.Dense(16), reshape()],
        lambda: [layers.Dense(8, "sigmoid"), layers.Dense(16), reshape()],
        lambda: [layers.Dense(16, activation="linear"), layers.Activation("linear"), reshape()],
        lambda: [sequential(layers.Dense(8, "relu"), layers.Dense(16)), reshape()],
        lambda: [layers.Dense(16, "sigmoid"), reshape(), layers.Conv2DTranspose(1, 3, padding="same")],
        lambda: [layers.Dense(16, "sigmoid"), layers.Rescaling(2.0, -1.0), reshape()],
        lambda: [layers.Reshape((2, 1, 1)), layers.ZeroPadding2D(((0, 2), (0, 3)))],
    ],
)
def test_a_decoder_that_ends_in_a_linear_layer_is_accepted(parts):
    assert VAE(encoder(), decoder(*parts()), "bernoulli").decode(np.zeros((1, 2))).shape == (1, *SHAPE)


@pytest.mark.parametrize(
    ("likelihood", "name", "k", "shape"),
    [
        ("discretized_logistic", "DiscretizedLogistic", 2, SHAPE),
        (likelihoods.Gaussian("per_pixel"), "Gaussian", 2, (4, 4, 3)),
        ("bernoulli", "Bernoulli", 1, (4, 4, 2)),
        ("bernoulli", "Bernoulli", 1, (4, 3, 1)),
        ("gaussian", "Gaussian", 1, (16,)),
    ],
)
def test_a_wrong_number_of_parameters_is_named(likelihood, name, k, shape):
    with pytest.raises(ValueError) as caught:
        VAE(encoder(), decoder(layers.Dense(int(np.prod(shape))), reshape(*shape)), likelihood)
    assert str(caught.value) == (
        f"For {name} and images (None, 4, 4, 1) the decoder must give (None, 4, 4, {k}): {k} per pixel, along the last "
        f"axis. Received: decoder output {(None, *shape)}"
    )


def test_conditions_that_do_not_match_are_named():
    def plain(condition=None):
        return decoder(layers.Dense(16), reshape(), condition=condition)

    reason = "A condition is one second input, of the same shape in encoder and decoder. Received: beside "
    for build, received in (
        (lambda: VAE(encoder(condition=(3,)), plain()), "the images [(None, 3)], beside z []"),
        (lambda: VAE(encoder(), plain((3,))), "the images [], beside z [(None, 3)]"),
        (lambda: VAE(encoder(condition=(3,)), plain((4,))), "the images [(None, 3)], beside z [(None, 4)]"),
    ):
        with pytest.raises(ValueError) as caught:
            build()
        assert str(caught.value) == reason + received
    assert VAE(encoder(condition=(3,)), plain((3,))).condition_shapes == [(3,)]
    three = [keras.Input((2,)), keras.Input((3,)), keras.Input((3,))]
    with pytest.raises(ValueError, match="one second input"):
        both = keras.Model(three, reshape()(layers.Dense(16)(layers.Concatenate()(three))))
        x = [keras.Input(SHAPE), *three[1:]]
        flat = layers.Concatenate()([layers.Flatten()(x[0]), *x[1:]])
        VAE(keras.Model(x, [layers.Dense(2)(flat) for _ in range(3)]), both)


def test_parts_that_are_no_encoder_or_decoder_are_named():
    plain = decoder(layers.Dense(16), reshape())
    with pytest.raises(ValueError, match=r"must be built Keras models. Received: None"):
        VAE(None, plain)
    with pytest.raises(ValueError, match="must be built Keras models"):
        VAE(encoder(), keras.Sequential([layers.Dense(16)]))
    with pytest.raises(ValueError, match=r"each of the decoder's input shape.*decoder input \(None, 3\)"):
        VAE(encoder(), sequential(layers.Dense(16), reshape(), inputs=3))
    x = keras.Input(SHAPE)
    with pytest.raises(ValueError, match=r"must give \[z_mean, z_log_var, z\].*outputs \[\(None, 2\), \(None, 2\)\]"):
        VAE(keras.Model(x, [layers.Dense(2)(layers.Flatten()(x)) for _ in range(2)]), plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: validation.as_numbers([[1, 2], [3]]), "`x` must be an array of numbers"),
        (lambda: validation.as_numbers(["a"], "z"), "`z` must hold numbers. Received: dtype <U1"),
        (lambda: validation.as_numbers([1j]), "`x` must hold numbers. Received: dtype complex128"),
        (lambda: validation.check_pixels([3], 0, 2.5), r"\[0, 2.5\].*3 to 3.$"),
        (lambda: validation.check_sizes(a=1, b=0), "`b` takes positive integers. Received: 0"),
        (lambda: validation.check_sizes(b=True), "`b` takes positive integers. Received: True"),
        (lambda: validation.check_sizes(b=2.0), "`b` takes positive integers. Received: 2.0"),
        (lambda: validation.check_lists_of_sizes(filters=3), "`filters` must be a list or a tuple.*Received: 3"),
        (lambda: validation.check_lists_of_sizes(filters=(3, -1)), "`filters` takes positive integers. Received: -1"),
        (lambda: validation.check_weights([1, 2], 3), r"must hold 3 finite values, 0 or more. Received: \(2,\)"),
        (lambda: validation.check_weights([1, -1, 2], 3), "0 or more"),
        (lambda: validation.check_weights([1, np.inf, 2], 3), "finite"),
        (lambda: validation.to_tensors(a=np.zeros((2, 3)), b=np.zeros((2, 4))), "`a`, `b` must be real"),
        (lambda: validation.to_tensors(a=np.zeros(2, "complex64")), "`a` must be real"),
        (lambda: validation.to_latent_tensors(a=np.zeros(3), b=np.zeros(1)), r"a.shape=\(3,\), b.shape=\(1,\)"),
        (lambda: validation.check_latent(np.zeros(2), 2), r"shape \(n, 2\). Received: shape \(2,\)"),
        (lambda: validation.check_latent([[0, np.nan]], 2), "finite"),
        (lambda: validation.expand_condition(1, [], 3), "This model takes no `condition`. Received: 1"),
        (lambda: validation.expand_condition(None, [()], 3), "This model needs a `condition`. Received: None"),
        (lambda: validation.expand_condition([1, 2], [()], 3), r"shape \(3\). Received: \(2,\)"),
        (lambda: validation.expand_condition([1, np.nan], [(2,)], 3), "finite"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_good_values_pass():
    validation.check_sizes(a=1, b=np.int64(3))
    validation.check_lists_of_sizes(a=(), b=[1, np.int32(2)])
    validation.check_weights([0, 1.5, 2], 3)
    validation.check_weights(np.ones((3, 1)), 3)
    assert validation.check_pixels([]).size == 0
    np.testing.assert_array_equal(validation.check_pixels([[-1, 2.5]], -1, 2.5), [[-1, 2.5]])
    # one condition for all points, and one for each
    np.testing.assert_array_equal(validation.expand_condition(2, [()], 3), [2, 2, 2])
    np.testing.assert_array_equal(validation.expand_condition([4, 5], [(2,)], 3), [[4, 5]] * 3)
    np.testing.assert_array_equal(validation.expand_condition([4, 5], [()], 2), [4, 5])

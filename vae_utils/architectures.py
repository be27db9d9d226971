"""The two architectures of the series, and weights that were trained for them."""

import hashlib
import json
import math
from pathlib import Path

import keras
from keras import layers

from vae_utils import likelihoods
from vae_utils._validation import check_lists_of_sizes, check_sizes
from vae_utils.layers import Sampling
from vae_utils.models import VAE


def dense_vae(
    image_shape=(28, 28, 1), hidden=(256,), latent_dim=2, likelihood="bernoulli", num_classes=None, condition_dim=None
):
    """Build the dense VAE: by default 784–256–2–256–784, with 404,244 parameters.

    Args:
        image_shape: Shape of one image.
        hidden: Units of the encoder's hidden layers; the decoder has them in reverse.
        latent_dim: Number of latent dimensions.
        likelihood: `Likelihood`, or its name.
        num_classes: For a condition that is a label: how many there are. Labels are 0, 1, …, shape `(n,)`.
        condition_dim: For a condition of numbers: how many there are. The numbers have the shape `(n, condition_dim)`.

    Returns:
        `VAE`, not yet compiled.

    Raises:
        ValueError: If a size is not positive, or there are two conditions.

    Source: the Keras blog's "Building Autoencoders in Keras" (2016), with He initialization in the ReLU layers.
    """
    check_lists_of_sizes(image_shape=image_shape, hidden=hidden)
    check_sizes(latent_dim=latent_dim)
    likelihood = likelihoods.get(likelihood)
    inputs = [keras.Input(image_shape), *_condition(num_classes, condition_dim)]
    x = _join(layers.Flatten(data_format="channels_last")(inputs[0]), inputs[1:], num_classes)
    for units in hidden:
        x = layers.Dense(int(units), activation="relu", kernel_initializer="he_normal")(x)
    encoder = _encoder(inputs, x, latent_dim)

    inputs = [keras.Input((int(latent_dim),)), *_condition(num_classes, condition_dim)]
    x = _join(inputs[0], inputs[1:], num_classes)
    for units in reversed(hidden):
        x = layers.Dense(int(units), activation="relu", kernel_initializer="he_normal")(x)
    *size, channels = map(int, image_shape)
    shape = (*size, channels * likelihood.parameters_per_pixel)
    x = layers.Dense(math.prod(shape))(x)
    x = layers.Reshape(shape, name="logits")(x)
    return VAE(encoder, _model(inputs, x, "decoder"), likelihood)


def conv_vae(
    image_shape=(28, 28, 1),
    filters=(32, 64),
    hidden=16,
    latent_dim=2,
    likelihood="bernoulli",
    num_classes=None,
    condition_dim=None,
):
    """Build the convolutional VAE: by default keras.io's, 69,076 + 65,089 = 134,165 parameters.

    Each entry of `filters` is a 3×3 convolution with stride 2 in the encoder and its transpose in the decoder, which
    crops what is too large.

    Args:
        image_shape: Shape of one image, `(height, width, channels)`.
        filters: Channels of the encoder's convolutions; the decoder has them in reverse.
        hidden: Units of the encoder's dense layer.
        latent_dim: Number of latent dimensions.
        likelihood: `Likelihood`, or its name.
        num_classes: For a condition that is a label: how many there are. Labels are 0, 1, …, shape `(n,)`.
        condition_dim: For a condition of numbers: how many there are. The numbers have the shape `(n, condition_dim)`.

    Returns:
        `VAE`, not yet compiled.

    Raises:
        ValueError: If a size is not positive, or there are two conditions.

    Source: Chollet (2020), https://keras.io/examples/generative/vae/, with He initialization in the ReLU layers.
    """
    check_lists_of_sizes(image_shape=image_shape, filters=filters)
    check_sizes(hidden=hidden, latent_dim=latent_dim)
    if len(image_shape) != 3:
        raise ValueError(f"`image_shape` must be (height, width, channels). Received: {image_shape}")
    likelihood = likelihoods.get(likelihood)
    height, width, channels = (int(size) for size in image_shape)
    relu = {"activation": "relu", "kernel_initializer": "he_normal"}
    convolution = {"kernel_size": 3, "padding": "same", "data_format": "channels_last"}
    inputs = [keras.Input(image_shape), *_condition(num_classes, condition_dim)]
    x = inputs[0]
    for channels_out in filters:
        x = layers.Conv2D(int(channels_out), strides=2, **convolution, **relu)(x)
    x = _join(layers.Flatten(data_format="channels_last")(x), inputs[1:], num_classes)
    x = layers.Dense(int(hidden), **relu)(x)
    encoder = _encoder(inputs, x, latent_dim)

    factor = 2 ** len(filters)
    rows, columns = -(-height // factor), -(-width // factor)
    smallest = (rows, columns, int(filters[-1]) if filters else channels)
    inputs = [keras.Input((int(latent_dim),)), *_condition(num_classes, condition_dim)]
    x = layers.Dense(math.prod(smallest), **relu)(_join(inputs[0], inputs[1:], num_classes))
    x = layers.Reshape(smallest)(x)
    for channels_out in reversed(filters):
        x = layers.Conv2DTranspose(int(channels_out), strides=2, **convolution, **relu)(x)
    x = layers.Conv2DTranspose(channels * likelihood.parameters_per_pixel, name="logits", **convolution)(x)
    too_many = (rows * factor - height, columns * factor - width)
    if any(too_many):
        x = layers.Cropping2D([(size // 2, size - size // 2) for size in too_many], data_format="channels_last")(x)
    return VAE(encoder, _model(inputs, x, "decoder"), likelihood)


def load_pretrained(name):
    """Load a trained VAE that ships with the module.

    Args:
        name: `"dense-2d"`, `"dense-20d"` or `"conv-2d"`. `weights/manifest.json` says of each how it was trained and
            the −ELBO it reaches on MNIST's test digits.

    Returns:
        `VAE`, not compiled.

    Raises:
        ValueError: If there is no such model, or its file is not the one in the manifest.
    """
    folder = Path(__file__).parent / "weights"
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    if name not in manifest:
        raise ValueError(f"`name` must be one of {sorted(manifest)}. Received: {name!r}")
    path = folder / f"{name}.weights.h5"
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest[name]["sha256"]:
        raise ValueError(f"{path} is not the file in the manifest (its SHA-256 differs): install vae_utils again.")
    [(builder, arguments)] = manifest[name]["model"].items()
    vae = {"dense_vae": dense_vae, "conv_vae": conv_vae}[builder](**arguments)
    vae.load_weights(path)
    return vae


def _encoder(inputs, x, latent_dim):
    z_mean = layers.Dense(int(latent_dim), name="z_mean")(x)
    z_log_var = layers.Dense(int(latent_dim), name="z_log_var")(x)
    z = Sampling(name="z")([z_mean, z_log_var])
    return _model(inputs, [z_mean, z_log_var, z], "encoder")


def _model(inputs, outputs, name):
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name=name)


def _condition(num_classes, condition_dim):
    """The second input, in a list, or an empty list."""
    if num_classes is not None and condition_dim is not None:
        raise ValueError(
            "A condition is a label or numbers: give `num_classes` or `condition_dim`. "
            f"Received: num_classes={num_classes}, condition_dim={condition_dim}"
        )
    if num_classes is not None:
        check_sizes(num_classes=num_classes)
        return [keras.Input((), dtype="int32", name="label")]
    if condition_dim is not None:
        check_sizes(condition_dim=condition_dim)
        return [keras.Input((int(condition_dim),), name="condition")]
    return []


def _join(x, condition, num_classes):
    """Put the condition beside a layer's units, a label as 0s and a 1."""
    if not condition:
        return x
    (numbers,) = condition
    if num_classes is not None:
        column = layers.Reshape((1,))(numbers)
        numbers = layers.CategoryEncoding(num_classes, output_mode="one_hot")(column)
    return layers.Concatenate()([x, numbers])

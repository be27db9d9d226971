"""The variational autoencoder as a Keras model, and the two architectures of the series."""

import contextlib
import functools
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
from keras import layers, ops

from vae_utils.data import as_numbers, batches, check_pixels, check_sizes
from vae_utils.distributions import bernoulli_log_prob, gaussian_kl
from vae_utils.layers import Sampling


@keras.saving.register_keras_serializable("vae_utils")
class VAE(keras.Model):
    """A variational autoencoder that Keras can fit, evaluate, predict with, save and load.

    The loss is −ELBO, with the KL divergence weighted by β, in nats per image: summed over pixels and latent
    dimensions, averaged over the batch. `reconstruction_loss` and `kl_loss` are its two terms, before weighting.

    ```python
    vae = conv_vae()
    vae.compile("adam")
    vae.fit(x_train, validation_data=x_val, epochs=10)
    ```

    `evaluate` draws the same noise every time (for the same `batch_size`), so that two of its values differ only by
    what the model has learned. Called on images, the model returns what the loss needs: a dictionary of `z_mean`,
    `z_log_var` and `logits`.

    Args:
        encoder: Keras model from images `(batch, …)` to `[z_mean, z_log_var, z]`, each `(batch, latent_dim)`.
        decoder: Keras model from `z` to logits of the images' shape.
        beta: Weight β of the KL divergence, 1 for the ELBO. Assigning to `vae.beta` takes effect at once, also in
            the midst of training.
        **kwargs: `keras.Model`'s arguments.

    Raises:
        ValueError: If the encoder's outputs, the decoder's input and the images' shape do not fit, or β is negative.

    Source: Kingma & Welling (2014), https://arxiv.org/abs/1312.6114; β: Higgins et al. (2017),
    https://openreview.net/forum?id=Sy2fzU9gl. The loss is derived in chapter 02.
    """

    def __init__(self, encoder, decoder, beta=1.0, **kwargs):
        super().__init__(**kwargs)
        _check_parts_match(encoder, decoder)
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = tuple(encoder.input_shape[1:])
        self.latent_dim = decoder.input_shape[-1]
        # A variable, so that a compiled training step reads β anew; out of Keras' sight, or it would be
        # counted among the model's parameters.
        self._beta = SimpleNamespace(variable=keras.Variable(0.0, trainable=False, name="beta"))
        self.beta = beta
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.kl_tracker = keras.metrics.Mean(name="kl_loss")
        self.build(encoder.input_shape)

    @property
    def beta(self):
        return float(self._beta.variable)

    @beta.setter
    def beta(self, value):
        if not isinstance(value, (int, float, np.integer, np.floating)) or not 0 <= value < 3e38:
            raise ValueError(f"`beta` must be a number, finite and not negative. Received: {value!r}")
        self._beta.variable.assign(value)

    @property
    def non_trainable_variables(self):  # JAX's compiled step takes these as arguments, and all else as constants
        return [*super().non_trainable_variables, self._beta.variable]

    def call(self, x, training=None):
        z_mean, z_log_var, z = self.encoder(x, training=training)
        logits = self.decoder(z, training=training)
        return {"z_mean": z_mean, "z_log_var": z_log_var, "logits": logits}

    def log_prob(self, x, logits):
        """Log-likelihood log p(x | z), one value per image; for another likelihood, override it and `mean`."""
        return bernoulli_log_prob(x, logits)

    def mean(self, logits):
        """Mean image of p(x | z), which `predict`, `decode` and `sample` return."""
        return ops.sigmoid(logits)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """−ELBO averaged over the batch; `y` is ignored, since the images are their own target."""
        reconstruction_loss = -self.log_prob(x, y_pred["logits"])
        kl_loss = gaussian_kl(y_pred["z_mean"], y_pred["z_log_var"])
        if sample_weight is not None:
            weights = ops.reshape(ops.cast(sample_weight, kl_loss.dtype), (-1,))
            reconstruction_loss, kl_loss = weights * reconstruction_loss, weights * kl_loss
        self.reconstruction_tracker.update_state(reconstruction_loss)
        self.kl_tracker.update_state(kl_loss)
        return ops.mean(reconstruction_loss + self._beta.variable * kl_loss) + sum(self.losses)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        **kwargs,
    ):
        """Train as `keras.Model.fit` does, and stop with a `FloatingPointError` when it diverges."""
        self.check_images(x)
        if validation_data is not None:
            self.check_images(_first(validation_data))
        check_sizes(batch_size=1 if batch_size is None else batch_size, epochs=epochs)
        if not 0 <= validation_split < 1:
            raise ValueError(f"`validation_split` must lie in [0, 1). Received: {validation_split}")
        y = _check_weights(x, y, **kwargs)
        callbacks = [_StopAtDivergence(), *keras.tree.flatten(callbacks or [])]
        others = {"class_weight", "steps_per_epoch", "validation_steps"} & kwargs.keys()
        if y is None and not validation_split and not others and shuffle != "batch":
            validation_data = _in_batches(validation_data, kwargs.get("validation_batch_size") or batch_size)
            given, x = x, _in_batches(x, batch_size, shuffle)
            shuffle = shuffle and x is given
        replicas = getattr(getattr(self, "distribute_strategy", None), "num_replicas_in_sync", 0)  # on TensorFlow only
        if self.compiled and replicas == 1:  # nothing to reduce, and TensorFlow would keep the compiled step for good:
            self.optimizer._all_reduce_sum_gradients = list  # https://github.com/tensorflow/tensorflow/issues/61791
        arguments = (x, y, batch_size, epochs, verbose, callbacks, validation_split, validation_data, shuffle)
        try:
            return super().fit(*arguments, **kwargs)
        finally:
            self._initial_epoch = None  # `BackupAndRestore` leaves it, and the next `fit` would skip that many epochs

    def evaluate(self, x=None, y=None, batch_size=None, *args, **kwargs):
        self.check_images(x)
        check_sizes(batch_size=1 if batch_size is None else batch_size)
        y = _check_weights(x, y, **kwargs)
        if y is None and not kwargs.get("steps"):
            x = _in_batches(x, batch_size)
        with self._same_noise():
            return super().evaluate(x, y, batch_size, *args, **kwargs)

    def predict(self, x, batch_size=None, *args, **kwargs):
        """Reconstruct images: probabilities of the images' shape, decoded from `z_mean`.

        Takes `keras.Model.predict`'s arguments.
        """
        self.check_images(x)
        check_sizes(batch_size=1 if batch_size is None else batch_size)
        return self._reconstructor.predict(_in_batches(x, batch_size), batch_size, *args, **kwargs)

    def predict_on_batch(self, x):
        """`predict` for one batch."""
        self.check_images(x)
        return self._reconstructor.predict_on_batch(x)

    def encode(self, x, batch_size=1_000):
        """Encode images.

        Args:
            x: Images in [0, 1], or a data set of batches of them.
            batch_size: Images encoded at a time.

        Returns:
            `(z_mean, z_log_var)`, arrays of shape `(n, latent_dim)`.

        Raises:
            ValueError: If images have another shape or leave [0, 1].
        """
        self.check_images(x)
        check_sizes(batch_size=batch_size)
        outputs = []
        for batch in _parts(x, batch_size) if hasattr(x, "__array__") else map(_first, x):
            self.check_images(batch)
            outputs.append([ops.convert_to_numpy(output) for output in self.encoder(batch, training=False)[:2]])
        if not outputs:
            raise ValueError("`x` holds no batch of images.")
        return tuple(map(np.concatenate, zip(*outputs, strict=True)))

    def decode(self, z, batch_size=250):
        """Decode latent points.

        Args:
            z: Points, shape `(n, latent_dim)`.
            batch_size: Points decoded at a time.

        Returns:
            Probabilities, shape `(n, …)`: the mean image of p(x | z) for each point.

        Raises:
            ValueError: If `z` has another shape or holds values that are not finite.
        """
        check_sizes(batch_size=batch_size)
        z = as_numbers(z, "z").astype("float32")
        if z.ndim != 2 or z.shape[1] != self.latent_dim or len(z) == 0 or not np.isfinite(z).all():
            raise ValueError(
                f"`z` must hold finite values in the shape (n, {self.latent_dim}). Received: shape {z.shape}"
            )
        logits = [self.decoder(batch, training=False) for batch in _parts(z, batch_size)]
        return np.concatenate([ops.convert_to_numpy(self.mean(batch)) for batch in logits])

    def sample(self, n, seed=None):
        """Draw from the prior and decode: `n` mean images, as probabilities.

        Args:
            n: How many.
            seed: Optional integer; the same seed gives the same images.

        Returns:
            Probabilities, shape `(n, …)`.

        Raises:
            ValueError: If `n` is not a positive integer.
        """
        check_sizes(n=n)
        return self.decode(keras.random.normal((n, self.latent_dim), seed=seed))

    @functools.cached_property
    def _reconstructor(self):
        x = keras.Input(self.image_shape)
        return keras.Model(x, self.mean(self.decoder(self.encoder(x)[0])))

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "decoder": keras.saving.serialize_keras_object(self.decoder),
            "beta": self.beta,
        }

    @classmethod
    def from_config(cls, config):
        parts = {part: keras.saving.deserialize_keras_object(config.pop(part)) for part in ("encoder", "decoder")}
        return cls(**parts, **config)

    def check_images(self, x):
        """Raise `ValueError` if an array is not a batch of images for this model; let data sets pass."""
        if not hasattr(x, "__array__"):
            if isinstance(x, (list, tuple, dict, set, str, bytes)) or not hasattr(x, "__getitem__") | hasattr(
                x, "__iter__"
            ):
                raise ValueError(f"Pass one array of images, or a data set. Received: a {type(x).__name__}")
            return
        x = as_numbers(x)
        if x.shape[1:] != self.image_shape or x.size == 0:
            expected = ", ".join(map(str, ("n", *self.image_shape)))
            raise ValueError(f"Images must have the shape ({expected}), n ≥ 1. Received: {x.shape}")
        check_pixels(x)

    @contextlib.contextmanager
    def _same_noise(self):
        states = [generator.state for layer in self._flatten_layers() for generator in layer._seed_generators]
        kept = [ops.convert_to_numpy(state) for state in states]
        for k, state in enumerate(states):
            state.assign(np.array([0, k + 1], "uint32"))
        try:
            yield
        finally:
            for state, value in zip(states, kept, strict=True):
                state.assign(value)


def dense_vae(image_shape=(28, 28, 1), hidden=(256,), latent_dim=2):
    """Build the dense VAE: by default 784–256–2–256–784, with 404,244 parameters.

    Args:
        image_shape: Shape of one image.
        hidden: Units of the encoder's hidden layers; the decoder has them in reverse.
        latent_dim: Number of latent dimensions.

    Returns:
        `VAE`, not yet compiled.

    Raises:
        ValueError: If a size is not positive.

    Source: the Keras blog's "Building Autoencoders in Keras" (2016), with He initialization in the ReLU layers.
    """
    _check_lists(image_shape=image_shape, hidden=hidden)
    check_sizes(latent_dim=latent_dim)
    x = inputs = keras.Input(image_shape)
    x = layers.Flatten()(x)
    for units in hidden:
        x = layers.Dense(int(units), activation="relu", kernel_initializer="he_normal")(x)
    encoder = _encoder(inputs, x, latent_dim)

    x = inputs = keras.Input((int(latent_dim),))
    for units in reversed(hidden):
        x = layers.Dense(int(units), activation="relu", kernel_initializer="he_normal")(x)
    x = layers.Dense(int(np.prod(image_shape)))(x)
    x = layers.Reshape(image_shape, name="logits")(x)
    return VAE(encoder, keras.Model(inputs, x, name="decoder"))


def conv_vae(image_shape=(28, 28, 1), filters=(32, 64), hidden=16, latent_dim=2):
    """Build the convolutional VAE: by default keras.io's, 69,076 + 65,089 = 134,165 parameters.

    Each entry of `filters` is a 3×3 convolution with stride 2 in the encoder and its transpose in the decoder.

    Args:
        image_shape: Shape of one image; height and width must be divisible by 2 to the number of filters.
        filters: Channels of the encoder's convolutions; the decoder has them in reverse.
        hidden: Units of the encoder's dense layer.
        latent_dim: Number of latent dimensions.

    Returns:
        `VAE`, not yet compiled.

    Raises:
        ValueError: If a size is not positive, or height or width cannot be halved so often.

    Source: Chollet (2020), https://keras.io/examples/generative/vae/, with He initialization in the ReLU layers.
    """
    _check_lists(image_shape=image_shape, filters=filters)
    check_sizes(hidden=hidden, latent_dim=latent_dim)
    if len(image_shape) != 3:
        raise ValueError(f"`image_shape` must be (height, width, channels). Received: {image_shape}")
    height, width, channels = image_shape
    factor = 2 ** len(filters)
    if height % factor or width % factor:
        raise ValueError(
            f"With {len(filters)} strided convolutions, height and width must be divisible by {factor}. "
            f"Received: image_shape={image_shape}"
        )
    relu = {"activation": "relu", "kernel_initializer": "he_normal"}
    convolution = {"kernel_size": 3, "strides": 2, "padding": "same", **relu}
    x = inputs = keras.Input(image_shape)
    for channels_out in filters:
        x = layers.Conv2D(int(channels_out), **convolution)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(int(hidden), **relu)(x)
    encoder = _encoder(inputs, x, latent_dim)

    smallest = (height // factor, width // factor, filters[-1] if filters else channels)
    x = inputs = keras.Input((int(latent_dim),))
    x = layers.Dense(int(np.prod(smallest)), **relu)(x)
    x = layers.Reshape(smallest)(x)
    for channels_out in reversed(filters):
        x = layers.Conv2DTranspose(int(channels_out), **convolution)(x)
    x = layers.Conv2DTranspose(int(channels), 3, padding="same", name="logits")(x)
    return VAE(encoder, keras.Model(inputs, x, name="decoder"))


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


def _parts(array, size):
    return (array[start : start + size] for start in range(0, len(array), size))


def _in_batches(x, batch_size, shuffle=False):
    needed = keras.backend.backend() == "tensorflow" and hasattr(x, "__array__")
    return batches(x, batch_size or 32, shuffle) if needed else x


class _StopAtDivergence(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        bernoulli = type(self.model).log_prob is VAE.log_prob
        # An untrained model needs log 2 nats a pixel; ten thousand times as many are no slow start.
        limit = 1e4 * np.prod(self.model.image_shape) if bernoulli else np.inf
        if not abs(logs["loss"]) < limit:  # also catches NaN, which compares false
            raise FloatingPointError(
                f"Training diverged: the loss of epoch {epoch + 1} is {logs['loss']:.3g}. Lower the learning rate, "
                "look for NaN and values outside [0, 1] in the data, and start from a new model: this one is lost."
            )
        if logs["reconstruction_loss"] < 0 and bernoulli:
            raise ValueError("The reconstruction loss is negative: the data set holds values outside [0, 1].")


def _check_weights(x, y, sample_weight=None, **_):
    """Check the examples' weights, and return a target: Keras drops the weights where there is none."""
    if sample_weight is None or not hasattr(x, "__array__"):
        return y
    weights = as_numbers(sample_weight, "sample_weight")
    if weights.shape not in ((len(x),), (len(x), 1)) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(
            f"`sample_weight` must hold {len(x)} finite values, 0 or more. Received: {weights.shape}, {weights}"
        )
    return x if y is None else y


def _first(batch):
    return batch[0] if isinstance(batch, (list, tuple)) and batch else batch


def _encoder(inputs, x, latent_dim):
    z_mean = layers.Dense(int(latent_dim), name="z_mean")(x)
    z_log_var = layers.Dense(int(latent_dim), name="z_log_var")(x)
    z = Sampling(name="z")([z_mean, z_log_var])
    return keras.Model(inputs, [z_mean, z_log_var, z], name="encoder")


def _check_lists(**named):
    for name, sizes in named.items():
        if not isinstance(sizes, (list, tuple)):
            raise ValueError(f"`{name}` must be a list or a tuple of positive integers. Received: {sizes!r}")
        for size in sizes:
            check_sizes(**{name: size})


def _check_parts_match(encoder, decoder):
    if not all(getattr(part, "outputs", None) for part in (encoder, decoder)):
        raise ValueError(f"The encoder and the decoder must be built Keras models. Received: {encoder!r}, {decoder!r}")
    outputs = [tuple(output.shape) for output in encoder.outputs]
    latent = tuple(decoder.input_shape)
    if outputs != [latent] * 3 or len(latent) != 2:
        raise ValueError(
            "The encoder must give [z_mean, z_log_var, z], each of the decoder's input shape (batch, latent_dim). "
            f"Received: encoder outputs {outputs}, decoder input {latent}"
        )
    if tuple(encoder.input_shape) != tuple(decoder.output_shape):
        raise ValueError(
            "The decoder must give logits of the images' shape. "
            f"Received: images {tuple(encoder.input_shape)}, decoder output {tuple(decoder.output_shape)}"
        )

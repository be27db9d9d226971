"""The variational autoencoder as a Keras model."""

import contextlib
import functools
from types import SimpleNamespace

import keras
import numpy as np
from keras import ops

from vae_utils import likelihoods, training
from vae_utils._inference import Inference
from vae_utils._replicas import mean_over_batch, share_of
from vae_utils._validation import check_images, check_latent, check_parts_match, check_sizes, expand_condition
from vae_utils.distributions import gaussian_kl


@keras.saving.register_keras_serializable("vae_utils")
class VAE(keras.Model):
    """A variational autoencoder that Keras can fit, evaluate, predict with, save, load and export.

    The loss is −ELBO, with the KL divergence weighted by β, in nats per image: summed over pixels and latent
    dimensions, averaged over the batch. `reconstruction_loss` and `kl_loss` are its two terms, before weighting. What
    layers add to `losses`, penalties on weights say, is added to it.

    ```python
    vae = conv_vae()
    vae.compile("adam")
    vae.fit(x_train, validation_data=x_val, epochs=10)
    ```

    `evaluate` draws the same noise every time (for the same `batch_size`), so that two of its values differ only by
    what the model has learned. Called on images, the model returns what the loss needs: a dictionary of `z_mean`,
    `z_log_var` and `parameters`, those of the likelihood.

    Wherever images go in, in arrays or in data sets, they may be of any float type, and are checked: an image that the
    likelihood does not take raises a `ValueError`. A model with a condition takes `[images, condition]` in their
    place. Targets in a data set, labels say, are not used.

    Args:
        encoder: Keras model from images `(batch, …)` to `[z_mean, z_log_var, z]`, each `(batch, latent_dim)`.
        decoder: Keras model from `z` to the likelihood's parameters: the images' shape, its last axis
            `likelihood.parameters_per_pixel` times as long.
        likelihood: `Likelihood`, or the name of one: `"bernoulli"`, whose parameters are logits,
            `"continuous_bernoulli"`, `"gaussian"`, `"discretized_logistic"`.
        beta: Weight β of the KL divergence, 1 for the ELBO. Assigning to `vae.beta` takes effect at once, also in
            the midst of training.
        **kwargs: `keras.Model`'s arguments.

    For a condition (labels, or numbers) encoder and decoder have it as a second input, of the same shape.

    Raises:
        ValueError: If encoder, decoder, likelihood and the images' shape do not fit, or β is negative.

    Source: Kingma & Welling (2014), https://arxiv.org/abs/1312.6114; β: Higgins et al. (2017),
    https://openreview.net/forum?id=Sy2fzU9gl; condition: Sohn et al. (2015). The loss is derived in chapter 02.
    """

    def __init__(self, encoder, decoder, likelihood="bernoulli", beta=1.0, **kwargs):
        super().__init__(**kwargs)
        # A variable, so that a compiled training step reads β anew; out of Keras' sight, or it would be
        # counted among the model's parameters.
        self._beta = SimpleNamespace(variable=keras.Variable(0.0, trainable=False, dtype="float32", name="beta"))
        self.beta = beta
        self.likelihood = likelihoods.get(likelihood)
        check_parts_match(encoder, decoder, self.likelihood)
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape, *self.condition_shapes = (tuple(tensor.shape[1:]) for tensor in encoder.inputs)
        self.latent_dim = decoder.inputs[0].shape[-1]
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.kl_tracker = keras.metrics.Mean(name="kl_loss")
        self.build(encoder.input_shape)
        self._inference = Inference(encoder, decoder, self.likelihood)
        self.uses_targets = False

    @property
    def beta(self):
        return float(self._beta.variable.numpy())

    @beta.setter
    def beta(self, value):
        self._beta.variable.assign(value)

    def __setattr__(self, name, value):
        # Here, since Keras would take a variable for a new part of the model before the setter sees it.
        if name == "beta" and not (isinstance(value, (int, float, np.integer, np.floating)) and 0 <= value < 3e38):
            raise ValueError(f"`beta` must be a number, finite and not negative. Received: {value!r}")
        super().__setattr__(name, value)

    @property
    def variables(self):  # JAX's compiled step takes these as arguments, and all else as constants
        return [*super().variables, self._beta.variable]

    def build(self, input_shape):
        """Nothing is left to build: the parts are."""

    def call(self, x, training=None):
        z_mean, z_log_var, z = self.encoder(x, training=training)
        parameters = self.decoder(self._beside(z, x), training=training)
        return {"z_mean": z_mean, "z_log_var": z_log_var, "parameters": parameters}

    def compile(self, optimizer="rmsprop", loss=None, loss_weights=None, **kwargs):
        """`keras.Model.compile`, without a `loss`: the model has its own."""
        if loss is not None or loss_weights is not None:
            raise ValueError(
                "A VAE's loss is −ELBO, made of its likelihood and the KL divergence: leave out `loss` and "
                "`loss_weights`. For another reconstruction loss, build the VAE with `likelihood=`; to weigh the KL "
                f"divergence, with `beta=`. Received: loss={loss!r}, loss_weights={loss_weights!r}"
            )
        super().compile(optimizer, **kwargs)
        self.uses_targets = any(kwargs.get(name) is not None for name in ("metrics", "weighted_metrics"))

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """−ELBO averaged over the batch; `y` is ignored, since the images are their own target."""
        dtype = self.likelihood.compute_dtype
        given = (
            x[0] if self.condition_shapes else x,
            *(y_pred[name] for name in ("z_mean", "z_log_var", "parameters")),
        )
        x, z_mean, z_log_var, parameters = (ops.cast(part, dtype) for part in given)
        reconstruction_loss = -self.likelihood.log_prob(x, parameters)
        kl_loss = gaussian_kl(z_mean, z_log_var)
        if sample_weight is not None:
            weights = ops.reshape(ops.cast(sample_weight, dtype), (-1,))
            reconstruction_loss, kl_loss = weights * reconstruction_loss, weights * kl_loss
        self.reconstruction_tracker.update_state(reconstruction_loss)
        self.kl_tracker.update_state(kl_loss)
        beta = ops.cast(self._beta.variable, dtype)
        return mean_over_batch(reconstruction_loss + beta * kl_loss) + share_of(sum(self.losses))

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
        class_weight=None,
        sample_weight=None,
        **kwargs,
    ):
        """Train as `keras.Model.fit` does, and stop with a `FloatingPointError` when it diverges."""
        check_sizes(batch_size=32 if batch_size is None else batch_size, epochs=epochs)
        if not 0 <= validation_split < 1:
            raise ValueError(f"`validation_split` must lie in [0, 1). Received: {validation_split}")
        gate = training.Gate(self, uses_targets=self.uses_targets or class_weight is not None)
        split_or_cut = validation_split or shuffle == "batch" or kwargs.get("steps_per_epoch")
        given, data = x, gate.admit(x, y, sample_weight, batch_size, shuffle, as_arrays=split_or_cut)
        if validation_data is not None:
            size, steps = (kwargs.get(f"validation_{name}") for name in ("batch_size", "steps"))
            validation_data = keras.utils.unpack_x_y_sample_weight(validation_data)
            validation_data = gate.admit(*validation_data, size or batch_size, as_arrays=steps)
        (x, y, sample_weight), is_made = data, training.is_data_set(data[0]) and not training.is_data_set(given)
        callbacks = [training.StopAtDivergence(), *keras.tree.flatten(callbacks or [])]
        arguments = (x, y, batch_size, epochs, verbose, callbacks, validation_split, validation_data)
        with training.workarounds(self), gate.own_errors():
            return super().fit(*arguments, shuffle and not is_made, class_weight, sample_weight, **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, verbose="auto", sample_weight=None, steps=None, **kwargs):
        """`keras.Model.evaluate`, with the same noise every time."""
        check_sizes(batch_size=32 if batch_size is None else batch_size)
        gate = training.Gate(self, self.uses_targets)
        x, y, sample_weight = gate.admit(x, y, sample_weight, batch_size, as_arrays=steps)
        with self._same_noise(), training.workarounds(self), gate.own_errors():
            return super().evaluate(x, y, batch_size, verbose, sample_weight, steps, **kwargs)

    def predict(self, x, batch_size=None, *args, **kwargs):
        """Reconstruct images: means of p(x | z) at `z_mean`.

        Takes `keras.Model.predict`'s arguments.
        """
        check_sizes(batch_size=32 if batch_size is None else batch_size)
        gate = training.Gate(self)
        x, _, _ = gate.admit(x, batch_size=batch_size)
        with gate.own_errors():
            return self._inference.reconstruct.predict(x, batch_size, *args, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """`keras.Model.train_on_batch`, for images that the model takes."""
        gate = training.Gate(self, self.uses_targets or kwargs.get("class_weight") is not None)
        return super().train_on_batch(*gate.admit(x, y, sample_weight, as_arrays=True), **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """`keras.Model.test_on_batch`, for images that the model takes."""
        gate = training.Gate(self, self.uses_targets)
        return super().test_on_batch(*gate.admit(x, y, sample_weight, as_arrays=True), **kwargs)

    def predict_on_batch(self, x):
        """`predict` for one batch."""
        self.check_images(x)
        return self._inference.reconstruct.predict_on_batch(x)

    def encode(self, x, batch_size=1_000):
        """Encode images.

        Args:
            x: Images, `[images, condition]`, or a data set of batches of them.
            batch_size: Images encoded at a time.

        Returns:
            `(z_mean, z_log_var)`, arrays of shape `(n, latent_dim)`.

        Raises:
            ValueError: If images have another shape or values that the likelihood does not take.
        """
        check_sizes(batch_size=batch_size)
        outputs = []
        for batch in map(_inputs, x) if training.is_data_set(x) else _rows(self.check_images(x), batch_size):
            found = self._inference.encode(self.check_images(batch), training=False)
            outputs.append([self._to_numpy(part) for part in found])
        if not outputs:
            raise ValueError("`x` holds no batch of images.")
        return tuple(map(np.concatenate, zip(*outputs, strict=True)))

    def decode(self, z, condition=None, batch_size=250):
        """Decode latent points.

        Args:
            z: Points, shape `(n, latent_dim)`.
            condition: For a model with a condition, that of each point, or one for all.
            batch_size: Points decoded at a time.

        Returns:
            Mean images of p(x | z), shape `(n, …)`; for a Bernoulli likelihood these are probabilities.

        Raises:
            ValueError: If `z` or the condition has another shape, or values that are not finite.
        """
        return self._decode(z, condition, batch_size, self.likelihood.mean)

    def sample(self, n, condition=None, seed=None, draw_pixels=False):
        """Draw from the prior and decode: `n` images.

        Args:
            n: How many.
            condition: For a model with a condition, that of each image, or one for all.
            seed: Optional integer; the same seed gives the same images.
            draw_pixels: Draw the pixels, too, from p(x | z). By default an image is the mean of p(x | z).

        Returns:
            Images, shape `(n, …)`.

        Raises:
            ValueError: If `n` is not a positive integer, or the condition does not fit.
        """
        check_sizes(n=n)
        if seed is not None:
            seed = keras.random.SeedGenerator(seed)
        z = ops.convert_to_numpy(keras.random.normal((n, self.latent_dim), dtype="float32", seed=seed))
        to_images = functools.partial(self.likelihood.sample, seed=seed) if draw_pixels else self.likelihood.mean
        return self._decode(z, condition, 250, to_images)

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Export for inference. Takes `keras.Model.export`'s arguments.

        A SavedModel has three functions: `serve` reconstructs images, `encode` gives `[z_mean, z_log_var]`, `decode`
        turns latent points into images. Other formats hold the reconstruction.
        """
        self._inference.export(filepath, format, **kwargs)

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "decoder": keras.saving.serialize_keras_object(self.decoder),
            "likelihood": keras.saving.serialize_keras_object(self.likelihood),
            "beta": self.beta,
        }

    @classmethod
    def from_config(cls, config):
        parts = {"encoder", "decoder", "likelihood"} & config.keys()  # 0.1.0 saved no likelihood
        return cls(**{part: keras.saving.deserialize_keras_object(config.pop(part)) for part in parts}, **config)

    def check_images(self, x):
        """Return `x` if it is a batch of images for this model, with the condition if it has one.

        Raises:
            ValueError: If the shape is another one, or there are values that the likelihood does not take.
        """
        check_images(x, self.image_shape, self.condition_shapes, self.likelihood)
        return x

    def _decode(self, z, condition, batch_size, to_images):
        check_sizes(batch_size=batch_size)
        z = check_latent(z, self.latent_dim)
        if self.condition_shapes or condition is not None:
            z = [z, expand_condition(condition, self.condition_shapes, len(z))]
        decoded = (self.decoder(batch, training=False) for batch in _rows(z, batch_size))
        dtype = self.likelihood.compute_dtype
        return np.concatenate([self._to_numpy(to_images(ops.cast(part, dtype))) for part in decoded])

    def _to_numpy(self, tensor):
        return ops.convert_to_numpy(ops.cast(tensor, self.likelihood.compute_dtype))

    def _beside(self, z, x):
        return [z, *x[1:]] if self.condition_shapes else z

    @contextlib.contextmanager
    def _same_noise(self):
        weights = {id(weight) for weight in self.weights}
        states = [state for state in super().variables if id(state) not in weights]
        kept = [state.numpy() for state in states]
        for k, state in enumerate(states):
            state.assign(np.array([0, k + 1], "uint32"))
        try:
            yield
        finally:
            for state, value in zip(states, kept, strict=True):
                state.assign(value)


def _rows(x, size):
    """Yield `x`, an array or a list of them, so many rows at a time."""
    for rows in training.row_slices(len(keras.tree.flatten(x)[0]), size):
        yield keras.tree.map_structure(lambda part: part[rows], x)  # noqa: B023 - called at once


def _inputs(batch):
    return batch[0] if isinstance(batch, (list, tuple)) and batch else batch

"""The variational autoencoder as a Keras model."""

import contextlib
from types import SimpleNamespace

import keras
import numpy as np
from keras import ops

from vae_utils import layers, training  # layers: whoever loads a saved VAE needs `Sampling`, too
from vae_utils._gate import Gate
from vae_utils._inference import EncoderDecoder
from vae_utils._replicas import mean_over_batch, share_of
from vae_utils._validation import check_sizes
from vae_utils.distributions import gaussian_kl


@keras.saving.register_keras_serializable("vae_utils")
class VAE(EncoderDecoder):
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
        super().__init__(encoder, decoder, likelihood, **kwargs)
        # A variable, so that a compiled training step reads β anew; out of Keras' sight, or it would be
        # counted among the model's parameters.
        self._beta = SimpleNamespace(variable=keras.Variable(0.0, trainable=False, dtype="float32", name="beta"))
        self.beta = beta
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.kl_tracker = keras.metrics.Mean(name="kl_loss")
        self.uses_targets = False
        self.build(encoder.input_shape)

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
        images = ops.cast(x[0] if self.condition_shapes else x, dtype)
        terms = {name: ops.cast(value, dtype) for name, value in y_pred.items()}
        reconstruction_loss = -self.likelihood.log_prob(images, terms["parameters"])
        kl_loss = gaussian_kl(terms["z_mean"], terms["z_log_var"])
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
        gate = Gate(self, uses_targets=self.uses_targets or class_weight is not None)
        split_or_cut = validation_split or shuffle == "batch" or kwargs.get("steps_per_epoch")
        x, y, sample_weight = gate.admit(x, y, sample_weight, batch_size, shuffle, as_arrays=split_or_cut)
        shuffle = shuffle and not gate.has_ordered
        if validation_data is not None:
            size, steps = (kwargs.get(f"validation_{name}") for name in ("batch_size", "steps"))
            validation_data = keras.utils.unpack_x_y_sample_weight(validation_data)
            validation_data = gate.admit(*validation_data, size or batch_size, as_arrays=steps)
        callbacks = [training.StopAtDivergence(), *keras.tree.flatten(callbacks or [])]
        arguments = (x, y, batch_size, epochs, verbose, callbacks, validation_split, validation_data)
        with training.workarounds(self), gate.own_errors():
            return super().fit(*arguments, shuffle, class_weight, sample_weight, **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, verbose="auto", sample_weight=None, steps=None, **kwargs):
        """`keras.Model.evaluate`, with the same noise every time."""
        check_sizes(batch_size=32 if batch_size is None else batch_size)
        gate = Gate(self, self.uses_targets)
        x, y, sample_weight = gate.admit(x, y, sample_weight, batch_size, as_arrays=steps)
        with self._same_noise(), training.workarounds(self), gate.own_errors():
            return super().evaluate(x, y, batch_size, verbose, sample_weight, steps, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """`keras.Model.train_on_batch`, for images that the model takes."""
        gate = Gate(self, self.uses_targets or kwargs.get("class_weight") is not None)
        return super().train_on_batch(*gate.admit(x, y, sample_weight, as_arrays=True), **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """`keras.Model.test_on_batch`, for images that the model takes."""
        gate = Gate(self, self.uses_targets)
        return super().test_on_batch(*gate.admit(x, y, sample_weight, as_arrays=True), **kwargs)

    def get_config(self):
        parts = ("encoder", "decoder", "likelihood")
        parts = {part: keras.saving.serialize_keras_object(getattr(self, part)) for part in parts}
        return {**super().get_config(), **parts, "beta": self.beta}

    @classmethod
    def from_config(cls, config):
        parts = {"encoder", "decoder", "likelihood"} & config.keys()  # 0.1.0 saved no likelihood
        return cls(**{part: keras.saving.deserialize_keras_object(config.pop(part)) for part in parts}, **config)

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

"""An encoder, a decoder and a likelihood, and what one does with them once they have learned."""

import functools
from types import SimpleNamespace

import keras
import numpy as np
from keras import ops

from vae_utils import likelihoods
from vae_utils._gate import Gate, is_data_set
from vae_utils._validation import check_images, check_latent, check_parts_match, check_sizes, expand_condition
from vae_utils.training import row_slices


class EncoderDecoder(keras.Model):
    """The part of `VAE` that draws no noise but what is asked for: reconstruct, encode, decode, sample, export."""

    def __init__(self, encoder, decoder, likelihood, **kwargs):
        super().__init__(**kwargs)
        self.likelihood = likelihoods.get(likelihood)
        check_parts_match(encoder, decoder, self.likelihood)
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape, *self.condition_shapes = (tuple(tensor.shape[1:]) for tensor in encoder.inputs)
        self.latent_dim = decoder.inputs[0].shape[-1]
        self._models = SimpleNamespace(  # made here, in the scope of a strategy if there is one; out of Keras' sight
            reconstruct=keras.Model(
                _alone_or_list(encoder.inputs),
                self.likelihood(decoder(_alone_or_list([encoder.outputs[0], *encoder.inputs[1:]]))),
            ),
            encode=keras.Model(_alone_or_list(encoder.inputs), encoder.outputs[:2]),
            decode=keras.Model(_alone_or_list(decoder.inputs), self.likelihood(decoder.outputs[0])),
        )

    def build(self, input_shape):
        """Nothing is left to build: the parts are."""

    def predict(self, x, batch_size=None, *args, **kwargs):
        """Reconstruct images: means of p(x | z) at `z_mean`.

        Takes `keras.Model.predict`'s arguments.
        """
        check_sizes(batch_size=32 if batch_size is None else batch_size)
        gate = Gate(self)
        x, _, _ = gate.admit(x, batch_size=batch_size)
        with gate.own_errors():
            return self._models.reconstruct.predict(x, batch_size, *args, **kwargs)

    def predict_on_batch(self, x):
        """`predict` for one batch."""
        self.check_images(x)
        return self._models.reconstruct.predict_on_batch(x)

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
        for batch in map(_inputs, x) if is_data_set(x) else _rows(self.check_images(x), batch_size):
            found = self._models.encode(self.check_images(batch), training=False)
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
        if format != "tf_saved_model":
            self._models.reconstruct.export(filepath, format=format, **kwargs)
            return
        archive = keras.export.ExportArchive()
        for name, model in zip(("serve", "encode", "decode"), vars(self._models).values(), strict=True):
            archive.track(model)
            specs = [keras.InputSpec(shape=tensor.shape, dtype=tensor.dtype) for tensor in model.inputs]
            archive.add_endpoint(name, _on_list(model), input_signature=specs)
        archive.write_out(filepath, **kwargs)

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
        return [z, *map(ops.convert_to_tensor, x[1:])] if self.condition_shapes else z


def _rows(x, size):
    """Yield `x`, an array or a list of them, so many rows at a time."""
    for rows in row_slices(len(keras.tree.flatten(x)[0]), size):
        yield keras.tree.map_structure(lambda part: part[rows], x)  # noqa: B023 - called at once


def _inputs(batch):
    return batch[0] if isinstance(batch, (list, tuple)) and batch else batch


def _alone_or_list(inputs):
    """Inputs as Keras wants them: one by itself, several in a list."""
    return inputs[0] if len(inputs) == 1 else list(inputs)


def _on_list(model):
    def call(*inputs):
        return model(_alone_or_list(inputs), training=False)

    return call

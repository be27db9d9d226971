"""The reparameterization trick, as a function of explicit noise and as a layer that draws its own."""

import keras
from keras import ops

from vae_utils._replicas import draw_rows
from vae_utils._validation import to_tensors


def reparameterize(z_mean, z_log_var, epsilon):
    """Turn standard normal noise into a sample of N(μ, diag σ²) through which gradients flow.

    z = μ + σ ⊙ ε,  σ = exp(½ log σ²)

    Args:
        z_mean: Means μ, shape `(..., latent_dim)`.
        z_log_var: Log-variances log σ², same shape.
        epsilon: Standard normal noise ε, of a shape that broadcasts with `z_mean`: an extra leading axis holds
            several Monte Carlo samples.

    Returns:
        Samples z, of the arguments' broadcast shape.

    Raises:
        ValueError: If the shapes do not broadcast.

    Source: Kingma & Welling (2014), https://arxiv.org/abs/1312.6114, section 2.4; derived in chapter 01.
    """
    z_mean, z_log_var, epsilon = to_tensors(z_mean=z_mean, z_log_var=z_log_var, epsilon=epsilon)
    return z_mean + ops.exp(0.5 * z_log_var) * epsilon


@keras.saving.register_keras_serializable("vae_utils")
class Sampling(keras.layers.Layer):
    """Sample z from N(μ, diag σ²) by `reparameterize`, with fresh noise for every example.

    Call it on `[z_mean, z_log_var]`, both of shape `(batch, latent_dim)`; it returns z, of that shape. It samples
    in training and in inference alike: z_mean is there for whoever wants no noise.

    Args:
        seed: Optional integer, for the same noise in every run. By default the noise follows
            `keras.utils.set_random_seed`.
        **kwargs: `keras.layers.Layer`'s arguments.

    Raises:
        ValueError: If it is not called on two tensors of the same shape.
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs):
        if not isinstance(inputs, (list, tuple)) or len(inputs) != 2:
            raise ValueError(f"`Sampling` is called on [z_mean, z_log_var]. Received: {inputs}")
        z_mean, z_log_var = to_tensors(z_mean=inputs[0], z_log_var=inputs[1])
        known = [pair for pair in zip(z_mean.shape, z_log_var.shape, strict=False) if None not in pair]
        if len(z_mean.shape) != len(z_log_var.shape) or any(a != b for a, b in known):
            raise ValueError(
                "`z_mean` and `z_log_var` must have the same shape. "
                f"Received: z_mean.shape={z_mean.shape}, z_log_var.shape={z_log_var.shape}"
            )

        def draw(rows):
            shape = (rows, *ops.shape(z_mean)[1:])
            return keras.random.normal(shape, dtype=z_mean.dtype, seed=self.seed_generator)

        return reparameterize(z_mean, z_log_var, draw_rows(draw, ops.shape(z_mean)[0]))

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    # The noise is saved with the weights, so that a training that was killed goes on with the noise it would have had.
    def save_own_variables(self, store):
        store["noise"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store):
        if "noise" in store:  # version 0.1.0 did not save it
            self.seed_generator.state.assign(store["noise"])

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}

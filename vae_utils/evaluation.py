"""What a trained VAE is worth, in nats: the ELBO, and log p(x) itself by sampling or by quadrature."""

import keras
import numpy as np
from keras import ops

from vae_utils.data import check_pixels, check_sizes
from vae_utils.distributions import gaussian_kl, gaussian_log_prob
from vae_utils.layers import reparameterize
from vae_utils.models import VAE

_ROWS = 1_000  # decoded at a time, which bounds the memory whatever the number of samples


def elbo(vae, x, num_samples=1, seed=0):
    """Evidence lower bound of each image, with the KL divergence in closed form and β = 1 whatever `vae.beta`.

    ELBO(x) = E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)), the expectation averaged over `num_samples` draws.

    Args:
        vae: `VAE`.
        x: Images in [0, 1], shape `(n, …)`.
        num_samples: Draws of z per image.
        seed: Integer; the same seed gives the same noise.

    Returns:
        Nats, float64 of shape `(n,)`. The mean over images is the number to report, with the standard error
        `elbo.std() / √n`.

    Raises:
        ValueError: If the images do not fit the model or `num_samples` is not a positive integer.

    Source: Kingma & Welling (2014), https://arxiv.org/abs/1312.6114, eq. 7; derived in chapter 02.
    """

    def term(x, z_mean, z_log_var, z):
        return vae.log_prob(x, vae.decoder(z)) - gaussian_kl(z_mean, z_log_var)

    return _accumulate(np.add, term, vae, x, num_samples, seed) / num_samples


def log_likelihood(vae, x, num_samples=100, seed=0):
    """Importance-weighted lower bound on log p(x) of each image; it tightens as `num_samples` grows.

    log 1/K Σₖ p(x | zₖ) p(zₖ) / q(zₖ | x),  zₖ from q(z | x)

    Args:
        vae: `VAE`.
        x: Images in [0, 1], shape `(n, …)`.
        num_samples: K, draws of z per image.
        seed: Integer; the same seed gives the same noise.

    Returns:
        Nats, float64 of shape `(n,)`.

    Raises:
        ValueError: If the images do not fit the model or `num_samples` is not a positive integer.

    Source: Burda, Grosse & Salakhutdinov (2016), https://arxiv.org/abs/1509.00519, eq. 8.
    """

    def term(x, z_mean, z_log_var, z):
        log_prior = gaussian_log_prob(z, ops.zeros_like(z), ops.zeros_like(z))
        return vae.log_prob(x, vae.decoder(z)) + log_prior - gaussian_log_prob(z, z_mean, z_log_var)

    return _accumulate(np.logaddexp, term, vae, x, num_samples, seed) - np.log(num_samples)


def grid_log_likelihood(vae, x, points=500, limit=5.0):
    """log p(x) of each image by quadrature over a two-dimensional latent space.

    log Σᵢ p(x | zᵢ) p(zᵢ) h², the midpoint rule on `points` × `points` cells of side h over [−limit, limit]².
    Once h is smaller than the posterior's standard deviation, the error vanishes faster than any power of h;
    double `points` to see it.

    Args:
        vae: `VAE` with two latent dimensions and the Bernoulli likelihood.
        x: Images in [0, 1], shape `(n, …)`.
        points: Cells along each axis.
        limit: Half the grid's side; the prior has about 1e-6 of its mass outside ±5.

    Returns:
        Nats, float64 of shape `(n,)`.

    Raises:
        ValueError: If the model has not two latent dimensions, the images do not fit it, or there is no such grid.
    """
    if type(vae).log_prob is not VAE.log_prob:
        raise ValueError("The grid is for the Bernoulli likelihood. Received: a VAE with another `log_prob`")
    if vae.latent_dim != 2:
        raise ValueError(f"The grid is for 2 latent dimensions. Received: {vae.latent_dim}")
    check_sizes(points=points)
    if not 0 < limit < np.inf:
        raise ValueError(f"`limit` must be positive and finite. Received: {limit}")
    pixels = _images(vae, x).reshape(len(x), -1)
    step = 2 * limit / points
    axis = -limit + step * (np.arange(points) + 0.5)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype("float32")
    total = np.full(len(pixels), -np.inf)
    for rows in _slices(len(z)):
        logits = ops.reshape(vae.decoder(z[rows]), (-1, pixels.shape[1]))
        # log p(x | z) is linear in x: one matrix product gives it for every image and every grid point.
        offset = gaussian_log_prob(z[rows], np.zeros(2, "float32"), np.zeros(2, "float32"))
        offset -= ops.sum(ops.softplus(logits), axis=1)
        log_joint = ops.convert_to_numpy(ops.matmul(pixels, ops.transpose(logits)) + offset)
        peak = log_joint.max(axis=1, keepdims=True)
        block = np.log(np.exp(log_joint - peak).sum(axis=1, dtype="float64")) + peak[:, 0]
        total = np.logaddexp(total, block)
    return total + 2 * np.log(step)


def reconstruction_floor(x):
    """Reconstruction loss of a perfect reconstruction: the entropy of the grey pixels.

    −Σᵢ [xᵢ log xᵢ + (1 − xᵢ) log(1 − xᵢ)]; zero for binary images, 45.5 on average for MNIST's grey test digits.

    Args:
        x: Images in [0, 1], shape `(n, …)`.

    Returns:
        Nats, shape `(n,)`.

    Raises:
        ValueError: If a pixel is outside [0, 1], or there is none.
    """
    x = check_pixels(x).astype("float64")
    if x.size == 0 or x.ndim == 0:
        raise ValueError(f"There must be at least one image, of pixels in [0, 1]. Received: shape {x.shape}")
    entropy = np.zeros_like(x)
    for p in (x, 1 - x):
        entropy -= p * np.log(np.where(p > 0, p, 1))
    return entropy.reshape(len(x), -1).sum(axis=1)


def _accumulate(add, term, vae, x, num_samples, seed):
    """Combine `term(x, z_mean, z_log_var, z)` over `num_samples` draws of z, by NumPy's ufunc `add`; shape `(n,)`."""
    check_sizes(num_samples=num_samples)
    x = _images(vae, x)
    # 16 bits, if the model computes in them, are too few for the log-densities.
    z_mean, z_log_var = (part.astype(np.promote_types(part.dtype, "float32")) for part in vae.encode(x))
    generator = keras.random.SeedGenerator(seed)

    def draw(x, z_mean, z_log_var):
        z = reparameterize(z_mean, z_log_var, keras.random.normal(ops.shape(z_mean), seed=generator))
        return term(x, z_mean, z_log_var, z)

    if len(x) * num_samples >= 10 * _ROWS and keras.backend.backend() == "tensorflow":  # below, compiling costs more
        import tensorflow as tf

        given = [tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in (x, z_mean, z_log_var)]
        draw = tf.function(draw, autograph=False).get_concrete_function(*given)
    total = np.full(len(x), add.identity, "float64")
    for rows in _slices(len(x)):
        n = len(x[rows])
        for draws in _slices(num_samples, _ROWS // n):
            repeats = len(range(num_samples)[draws])
            given = [np.concatenate([array[rows]] * repeats) for array in (x, z_mean, z_log_var)]
            values = ops.convert_to_numpy(draw(*map(ops.convert_to_tensor, given))).reshape(repeats, n)
            total[rows] = add(total[rows], add.reduce(values, axis=0, dtype="float64"))
    return total


def _images(vae, x):
    vae.check_images(x)
    if not hasattr(x, "__array__"):
        raise ValueError(f"`x` must be an array of images. Received: {type(x).__name__}")
    return np.asarray(x, "float32")


def _slices(n, size=_ROWS):
    return [slice(start, start + size) for start in range(0, n, size)]

"""What a trained VAE is worth, in nats: the ELBO, and log p(x) itself by sampling or by quadrature."""

import keras
import numpy as np
from keras import ops

from vae_utils._validation import check_pixels, check_sizes
from vae_utils.distributions import gaussian_kl, gaussian_log_prob
from vae_utils.layers import reparameterize
from vae_utils.training import compiled, row_slices

_ROWS = 1_000  # decoded at a time, which bounds the memory whatever the number of samples


def elbo(vae, x, num_samples=1, seed=0):
    """Evidence lower bound of each image, with the KL divergence in closed form and β = 1 whatever `vae.beta`.

    ELBO(x) = E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)), the expectation averaged over `num_samples` draws.

    Args:
        vae: `VAE`.
        x: Images, shape `(n, …)`, or `[images, condition]`.
        num_samples: Draws of z per image.
        seed: Integer; the same seed gives the same noise.

    Returns:
        Nats, float64 of shape `(n,)`. The mean over images is the number to report, with the standard error
        `elbo.std() / √n`.

    Raises:
        ValueError: If the images do not fit the model or `num_samples` is not a positive integer.

    Source: Kingma & Welling (2014), https://arxiv.org/abs/1312.6114, eq. 7; derived in chapter 02.
    """

    def term(log_prob, z_mean, z_log_var, z):
        return log_prob - gaussian_kl(z_mean, z_log_var)

    return _accumulate(np.add, term, vae, x, num_samples, seed) / num_samples


def log_likelihood(vae, x, num_samples=100, seed=0):
    """Importance-weighted lower bound on log p(x) of each image; it tightens as `num_samples` grows.

    log 1/K Σₖ p(x | zₖ) p(zₖ) / q(zₖ | x),  zₖ from q(z | x)

    Args:
        vae: `VAE`.
        x: Images, shape `(n, …)`, or `[images, condition]`.
        num_samples: K, draws of z per image.
        seed: Integer; the same seed gives the same noise.

    Returns:
        Nats, float64 of shape `(n,)`.

    Raises:
        ValueError: If the images do not fit the model or `num_samples` is not a positive integer.

    Source: Burda, Grosse & Salakhutdinov (2016), https://arxiv.org/abs/1509.00519, eq. 8.
    """

    def term(log_prob, z_mean, z_log_var, z):
        log_prior = gaussian_log_prob(z, ops.zeros_like(z), ops.zeros_like(z))
        return log_prob + log_prior - gaussian_log_prob(z, z_mean, z_log_var)

    return _accumulate(np.logaddexp, term, vae, x, num_samples, seed) - np.log(num_samples)


def grid_log_likelihood(vae, x, points=500, limit=5.0):
    """log p(x) of each image by quadrature over a two-dimensional latent space.

    log Σᵢ p(x | zᵢ) p(zᵢ) h², the midpoint rule on `points` × `points` cells of side h over [−limit, limit]².
    Once h is smaller than the posterior's standard deviation, the error vanishes faster than any power of h;
    double `points` to see it.

    Args:
        vae: `VAE` with two latent dimensions.
        x: Images, shape `(n, …)`, or `[images, condition]`. With a condition each image has a grid of its own.
        points: Cells along each axis.
        limit: Half the grid's side; the prior has about 1e-6 of its mass outside ±5.

    Returns:
        Nats, float64 of shape `(n,)`.

    Raises:
        ValueError: If the model has not two latent dimensions, the images do not fit it, or there is no such grid.
    """
    if vae.latent_dim != 2:
        raise ValueError(f"The grid is for 2 latent dimensions. Received: {vae.latent_dim}")
    check_sizes(points=points)
    if not 0 < limit < np.inf:
        raise ValueError(f"`limit` must be positive and finite. Received: {limit}")
    images, *condition = _arrays(vae, x)
    step = 2 * limit / points
    axis = -limit + step * (np.arange(points) + 0.5)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype("float32")
    log_prior = ops.convert_to_numpy(gaussian_log_prob(z, np.zeros_like(z), np.zeros_like(z)))
    # Images that share a grid are done together.
    groups = [slice(i, i + 1) for i in range(len(images))] if condition else [slice(None)]
    total = np.full(len(images), -np.inf)
    for group in groups:
        for rows in row_slices(len(z), _ROWS):
            given = [ops.convert_to_tensor(np.repeat(part[group], len(z[rows]), axis=0)) for part in condition]
            parameters = _decode(vae, ops.convert_to_tensor(z[rows]), given)
            log_joint = vae.likelihood.pairwise_log_prob(ops.convert_to_tensor(images[group]), parameters)
            log_joint = ops.convert_to_numpy(log_joint) + log_prior[rows]
            peak = log_joint.max(axis=1, keepdims=True)
            block = np.log(np.exp(log_joint - peak).sum(axis=1, dtype="float64")) + peak[:, 0]
            total[group] = np.logaddexp(total[group], block)
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
    """Combine `term(log p(x | z), z_mean, z_log_var, z)` over `num_samples` draws of z, by NumPy's ufunc `add`."""
    check_sizes(num_samples=num_samples)
    images, *condition = _arrays(vae, x)
    arrays = [images, *vae.encode([images, *condition] if condition else images), *condition]
    generator = keras.random.SeedGenerator(seed)

    def draw(images, z_mean, z_log_var, *condition):
        epsilon = keras.random.normal(ops.shape(z_mean), dtype=z_mean.dtype, seed=generator)
        z = reparameterize(z_mean, z_log_var, epsilon)
        return term(vae.likelihood.log_prob(images, _decode(vae, z, condition)), z_mean, z_log_var, z)

    n = len(images)
    if n * num_samples >= 10 * _ROWS and keras.backend.backend() == "tensorflow":  # below, compiling costs more
        draw = compiled(draw, arrays)
    total = np.full(n, add.identity, "float64")
    for rows in row_slices(n, _ROWS):
        length = len(images[rows])
        for draws in row_slices(num_samples, _ROWS // length):
            repeats = len(range(num_samples)[draws])
            given = [ops.convert_to_tensor(np.concatenate([array[rows]] * repeats)) for array in arrays]
            values = ops.convert_to_numpy(draw(*given)).reshape(repeats, length)
            total[rows] = add(total[rows], add.reduce(values, axis=0, dtype="float64"))
    return total


def _decode(vae, z, condition):
    """The likelihood's parameters, in its own width: 16 bits, if the model has them, are too few for log-densities."""
    return ops.cast(vae.decoder([z, *condition] if condition else z, training=False), vae.likelihood.compute_dtype)


def _arrays(vae, x):
    """Images, and the condition if there is one, as a list of arrays; the images in the likelihood's width."""
    x = vae.check_images(x)
    images, *condition = (np.asarray(part) for part in (x if vae.condition_shapes else [x]))
    return [images.astype(vae.likelihood.compute_dtype), *condition]

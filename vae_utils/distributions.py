"""Log-densities and divergences, one value per example, in nats."""

from keras import ops

from vae_utils._validation import to_latent_tensors, to_tensors


def gaussian_log_prob(z, mean, log_var):
    """Log-density of a Gaussian with independent coordinates.

    log N(z; μ, diag σ²) = −½ Σⱼ [log 2π + log σⱼ² + (zⱼ − μⱼ)² / σⱼ²]

    Args:
        z: Points, shape `(..., latent_dim)`.
        mean: Means μ, of a shape that broadcasts with `z`.
        log_var: Log-variances log σ², of a shape that broadcasts with `z`.

    Returns:
        Nats, shape `(...)`: the log-densities summed over the last axis.

    Raises:
        ValueError: If the last axes differ or the shapes do not broadcast.
    """
    z, mean, log_var = to_latent_tensors(z=z, mean=mean, log_var=log_var)
    log_two_pi = 1.8378770664093453
    return -0.5 * ops.sum(log_two_pi + log_var + (z - mean) ** 2 * ops.exp(-log_var), axis=-1)


def gaussian_kl(z_mean, z_log_var):
    """KL divergence from the approximate posterior to the standard normal prior.

    KL(N(μ, diag σ²) ‖ N(0, I)) = ½ Σⱼ [μⱼ² + σⱼ² − 1 − log σⱼ²]

    It is summed, not averaged, over the latent dimensions: an average would be β = 1 / latent_dim.

    Args:
        z_mean: Means μ, shape `(..., latent_dim)`.
        z_log_var: Log-variances log σ², same shape.

    Returns:
        Nats, shape `(...)`, never negative.

    Raises:
        ValueError: If the last axes differ or the shapes do not broadcast.

    Source: Kingma & Welling (2014), https://arxiv.org/abs/1312.6114, appendix B; derived in chapter 02.
    """
    z_mean, z_log_var = to_latent_tensors(z_mean=z_mean, z_log_var=z_log_var)
    # expm1(a) − a rather than exp(a) − 1 − a: in float32 the latter loses its digits near a = 0.
    return 0.5 * ops.sum(z_mean**2 + ops.expm1(z_log_var) - z_log_var, axis=-1)


def bernoulli_log_prob(x, logits):
    """Log-probability of pixels under independent Bernoulli distributions.

    log p(x | z) = Σᵢ [xᵢ log pᵢ + (1 − xᵢ) log(1 − pᵢ)],  p = sigmoid(logits)

    It is computed from the logits, where it stays finite, and summed over all axes but the first. For pixels
    strictly between 0 and 1 it is minus the usual cross-entropy, not the log-probability of anything: even p = x
    then leaves the entropy of the grey pixels (`vae_utils.evaluation.reconstruction_floor`).

    Args:
        x: Pixels in [0, 1], shape `(batch, ...)`.
        logits: log(p / (1 − p)), same shape as `x` from the second axis on.

    Returns:
        Nats per image, shape `(batch,)`.

    Raises:
        ValueError: If `x` and `logits` differ in rank, or in a size from the second axis on.
    """
    x, logits = to_tensors(x=x, logits=logits)
    if len(x.shape) < 2 or tuple(x.shape[1:]) != tuple(logits.shape[1:]):
        raise ValueError(
            "`x` and `logits` must have the same shape (batch, ...). "
            f"Received: x.shape={tuple(x.shape)}, logits.shape={tuple(logits.shape)}"
        )
    # x log p + (1 − x) log(1 − p) = x · logits − softplus(logits)
    return ops.sum(x * logits - ops.softplus(logits), axis=tuple(range(1, len(x.shape))))

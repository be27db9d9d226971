"""A plausible wrong answer to each exercise of chapter 06; every check must refuse it."""

WRONG = {
    # Counts the whole matrix, though a covariance is symmetric.
    1: """
def numbers_per_image(d, K):
    return 2 * d, d + d * d, 2 * d + K * (2 * d + 1)
""",
    # The stretch along the radius is forgotten; all d directions get the one across it.
    2: """
def radial(z, center, alpha, beta):
    r = ops.sqrt(ops.sum((z - center) ** 2, axis=1))
    g = beta / (alpha + r)
    return z + g[:, None] * (z - center), z.shape[1] * ops.log(1 + g)
""",
    # Undoes the first step first.
    3: """
def flow_log_density(z, inverses):
    total = 0
    for inverse in inverses:
        z, log_det = inverse(z)
        total = total + log_det
    return total + stats.norm.logpdf(z).sum(axis=1)
""",
    # The normalizer of q is forgotten.
    4: """
def best_discriminator(z, m, s):
    return -((z - m) ** 2) / (2 * s**2) + z**2 / 2
""",
    # The wrong sign: as if a weak discriminator made the claim too small.
    5: """
def true_elbo(claim, kl, mean_score):
    return claim + (kl - mean_score)
""",
}

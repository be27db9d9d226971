"""A plausible wrong answer to each exercise of chapter 03; every check must refuse it."""

WRONG = {
    # The second head is forgotten.
    1: """
def count_parameters(hidden, latent_dim):
    return 785 * hidden + (hidden + 1) * latent_dim + (latent_dim + 1) * hidden + (hidden + 1) * 784
""",
    # Averaged over the pixels rather than summed.
    2: """
def cost_of_caution(x):
    p = np.clip(x, 0.01, 0.99)
    cost = -np.mean(x * np.log(p) + (1 - x) * np.log(1 - p), axis=(1, 2, 3))
    return cost - evaluation.reconstruction_floor(x) / 784
""",
    # The KL stays an average, the slip that the exercise is about.
    3: """
def honest_loss(mean_cross_entropy, mean_kl, latent_dim):
    return 784 * mean_cross_entropy + mean_kl
""",
    # The quantile of one dimension.
    4: """
def ellipse_radius(coverage):
    return stats.norm.ppf(0.5 + coverage / 2)
""",
    # The best epoch of the whole run, which early stopping never sees.
    5: """
def early_stopping(val_losses, patience):
    best = int(np.argmin(val_losses))
    return best + 1, min(best + patience, len(val_losses) - 1) + 1
""",
    # The standard errors of two unpaired means.
    6: """
def paired_difference(elbo_a, elbo_b):
    variance = elbo_a.var() / len(elbo_a) + elbo_b.var() / len(elbo_b)
    return elbo_a.mean() - elbo_b.mean(), np.sqrt(variance)
""",
}

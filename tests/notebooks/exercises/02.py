"""A plausible wrong answer to each exercise of chapter 02: its check must refuse it."""

WRONG = {
    # averages over the second density
    1: """
def my_kl(mean_1, log_var_1, mean_2, log_var_2):
    distance = (mean_1 - mean_2) ** 2 * np.exp(-log_var_1)
    return 0.5 * (distance + np.exp(log_var_2 - log_var_1) - 1 - (log_var_2 - log_var_1))
""",
    # takes the average over all pixels, though rows and columns are summed
    2: """
def my_beta(channels, latent_dim):
    return 32 * 32 * channels / latent_dim
""",
    # right on paper, underflows near -1000
    3: """
def my_bound(log_weights):
    return np.log(np.exp(log_weights).mean(axis=0))
""",
    # forgets the second outcome
    4: """
def my_coin_kl(x, p):
    return x * np.log(x / p)
""",
    # takes the posterior's covariance for its precision
    5: """
def my_gap(W, noise_var):
    cov = np.linalg.inv(np.eye(W.shape[1]) + W.T @ W / noise_var)
    return 0.5 * (np.log(np.diag(cov)).sum() - np.linalg.slogdet(cov)[1])
""",
}

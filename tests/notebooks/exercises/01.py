"""A plausible wrong answer to each exercise of chapter 01; its check must reject every one."""

WRONG = {
    # Keeps the ½ of the log-variance.
    1: """
def sample_from_log_sigma(mean, log_sigma, epsilon):
    return mean + np.exp(0.5 * log_sigma) * epsilon
""",
    # The mean of f, the usual baseline, which is not the best one.
    2: """
def best_baseline(mu, sigma, dim):
    return dim * (mu**2 + sigma**2)
""",
    # The baseline of a sample contains the sample.
    3: """
def leave_one_out(f, score):
    return np.mean((f - f.mean(axis=1, keepdims=True)) * score, axis=1)
""",
    # Divides by the batch size whether the noise is shared or not.
    4: """
def weight_gradient_variance(x, sigma, shared):
    return 4 * sigma**2 * np.sum(x**2) / len(x) ** 2
""",
    # The pathwise gradient of a step.
    5: """
def slope_of_probability(mu, sigma, epsilon):
    return np.zeros_like(epsilon)
""",
    # Takes exp(log_mean) for the rate.
    6: """
def sample_exponential(log_mean, u):
    return -tf.math.log(1.0 - u) / tf.exp(log_mean)
""",
}

"""A plausible wrong answer to each exercise of chapter 05; every check must refuse it."""

WRONG = {
    # No axis for the samples: as many images as samples, so it broadcasts without a word.
    1: """
def score_samples(x, logits):
    return np.sum(x * logits - np.logaddexp(0, logits), axis=-1)
""",
    # S* rounded, which is not always the better of its two neighbours.
    2: """
def best_samples(v_images, v_noise, ratio):
    return max(1, round(np.sqrt(v_noise / v_images / ratio)))
""",
    # The stretch by σ is forgotten.
    3: """
def logistic_log_q(z_mean, z_log_var, z):
    epsilon = (z - z_mean) * np.exp(-0.5 * z_log_var)
    return np.sum(-epsilon - 2 * np.logaddexp(0, -epsilon), axis=-1)
""",
    # The shift of one pixel only.
    4: """
def to_unit_interval(nats_per_image):
    return nats_per_image - np.log(255)
""",
    # The ends are closed: what lies outside [0, 1] is lost.
    5: """
def laplace_masses(a, s):
    edges = np.linspace(0 - 0.5 / 255, 1 + 0.5 / 255, 257)
    return np.diff(stats.laplace(a, s).cdf(edges))
""",
}

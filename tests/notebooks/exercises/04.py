"""Plausible wrong answers to chapter 04's exercises; their checks must refuse them."""

WRONG = {
    1: """
def count_parameters(k, c_in, c_out):
    return k * k * c_in * c_out  # forgets the biases
""",
    2: """
def batch_loss(reconstruction, kl, beta):
    return np.mean(reconstruction) + beta * np.mean(kl)  # averages over latent dimensions
""",
    3: """
def upper_left(vae):
    return vae.decode([[2.0, -2.0]])[0]  # the axes swapped
""",
    4: """
def walk(vae, a, b, steps):
    t = np.linspace(0, 1, steps)[:, None, None, None]
    return (1 - t) * a + t * b  # straight in pixels
""",
    5: """
def bits_per_pixel(nats_per_image):
    return nats_per_image / 784  # still nats
""",
}

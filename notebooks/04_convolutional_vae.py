# ---
# jupyter:
#   jupytext:
#     formats: notebooks///ipynb,notebooks///py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Build the convolutional VAE
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/every-equation-executed/vae/blob/main/notebooks/04_convolutional_vae.ipynb)
#
# **What you'll do.** You build a convolutional VAE with two latent dimensions, train it on MNIST, and score it on digits
# it has never seen.
#
# **What you'll learn**
#
# - to halve and double images with strided convolutions, and to count their parameters by hand;
# - to write a VAE as a Keras model that `fit`, `evaluate`, `predict` and `save` understand;
# - to read its loss: what the reconstruction costs, what the code costs, what no model can avoid;
# - to look inside: the latent space, the manifold of digits, reconstructions, samples.
#
# **What you'll need.** Basic Keras. Chapter 02 derives the loss; here you only need to recognise its two terms.
#
# **Time.** 30 minutes to read. The full run takes about 5 minutes on two cores without a GPU; with
# `VAE_UTILS_QUICK=1` in the environment it takes less than a minute and trains on a small part of the digits.

# %%
import sys

if "google.colab" in sys.modules:
    get_ipython().run_line_magic("pip", "install -q --no-deps git+https://github.com/every-equation-executed/vae@main")

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers, ops

import vae_utils
from vae_utils import evaluation, plotting
from vae_utils.data import load_mnist
from vae_utils.distributions import bernoulli_log_prob, gaussian_kl
from vae_utils.layers import Sampling

keras.utils.set_random_seed(0)
print("quick run" if vae_utils.QUICK else "full run")

# %% [markdown]
# ## Load the digits
#
# `load_mnist` gives images as `float32` in [0, 1], of shape `(n, 28, 28, 1)`. Without a network it falls back to a
# smaller set of real digits, and says so.

# %%
digits = load_mnist(offline="optical-digits")
print(digits.name, digits.x_train.shape, digits.x_test.shape)

# %% [markdown]
# You need three sets. The model learns from the **training** digits. You choose its recipe by the **validation**
# digits, the last part of the training set. The **test** digits give one number, at the very end.

# %%
held_out = len(digits.x_train) // 12
x_train, x_val = digits.x_train[:-held_out], digits.x_train[-held_out:]
if vae_utils.QUICK:
    x_train, x_val = x_train[:2_000], x_val[:500]
print(len(x_train), "to train,", len(x_val), "to validate,", len(digits.x_test), "to test")

# %% mystnb={"figure": {"caption": "The first twenty validation digits.", "name": "fig-04-digits"}, "image": {"alt": "Two rows of ten handwritten digits, black ink on white."}}
ax = plotting.plot_digits(x_val[:20])
# %% [markdown]
# ## Halve the image: the encoder
#
# A 3×3 convolution with `strides=2` and `padding="same"` visits every second pixel, so its output has half the height
# and half the width. For an input of $n$ pixels on a side and stride $s$, the output has
#
# $$ m = \lceil n / s \rceil \tag{4.1} $$
#
# pixels on a side. From 28 you come to 14, then to 7.

# %% tags=["eq-4.1"]
for n in (28, 14, 7, 5):
    convolution = layers.Conv2D(1, kernel_size=3, strides=2, padding="same")
    m = convolution(np.zeros((1, n, n, 1))).shape[1]
    assert m == len(range(0, n, 2)), "every second pixel, the first one included"
    print(n, "→", m)

# %% [markdown]
# Each of the $c_{\text{out}}$ output channels looks at a $k \times k$ window of all $c_{\text{in}}$ input channels and
# adds one bias. So the layer has
#
# $$ (k \cdot k \cdot c_{\text{in}} + 1) \, c_{\text{out}} \tag{4.2} $$
#
# parameters, whatever the size of the image. Count the two convolutions that we'll use:

# %% tags=["eq-4.2", "nbval-check-output"]
for c_in, c_out in [(1, 32), (32, 64)]:
    convolution = layers.Conv2D(c_out, kernel_size=3)
    convolution.build((None, 28, 28, c_in))
    assert convolution.count_params() == (3 * 3 * c_in + 1) * c_out
    print(f"{c_in} → {c_out} channels: {convolution.count_params():,} parameters")

# %% [markdown]
# Now the encoder. Two strided convolutions bring 28×28×1 to 7×7×64; a dense layer of 16 units reads the whole of it;
# two more give `z_mean` and `z_log_var`, the mean and the log-variance of $q_\phi(z|x)$. `Sampling`, from chapter 01,
# draws `z`.
#
# `he_normal` scales the initial weights for ReLU layers, so that signals neither grow nor fade on their way through.

# %%
latent_dim = 2
relu = {"activation": "relu", "kernel_initializer": "he_normal"}

inputs = keras.Input((28, 28, 1), name="x")
h = layers.Conv2D(32, 3, strides=2, padding="same", **relu)(inputs)
h = layers.Conv2D(64, 3, strides=2, padding="same", **relu)(h)
h = layers.Flatten()(h)
h = layers.Dense(16, **relu)(h)
z_mean = layers.Dense(latent_dim, name="z_mean")(h)
z_log_var = layers.Dense(latent_dim, name="z_log_var")(h)
z = Sampling(name="z")([z_mean, z_log_var])
encoder = keras.Model(inputs, [z_mean, z_log_var, z], name="encoder")

# %% tags=["nbval-check-output"]
for layer in encoder.layers:
    print(f"{layer.name:<12} {layer.output.shape!s:<20} {layer.count_params():>7,}")
print(f"together {encoder.count_params():>32,}")

# %% [markdown]
# Nearly three quarters of the encoder's parameters sit in the dense layer that reads the 3,136 features:
# 3,136 × 16 + 16 = 50,192.
#
# ## Double the image: the decoder
#
# The decoder goes the other way. `Conv2DTranspose` with `strides=2` spreads every input pixel over a 3×3 patch of an
# output twice as large, so 7 becomes 14 and 14 becomes 28.
#
# The last layer has no activation: it gives **logits**. The probability that a pixel is black is
# $\operatorname{sigmoid}(\text{logits})$, but the loss is computed from the logits themselves, where it stays finite
# even when the sigmoid rounds to 0 or 1.

# %%
inputs = keras.Input((latent_dim,), name="z")
h = layers.Dense(7 * 7 * 64, **relu)(inputs)
h = layers.Reshape((7, 7, 64))(h)
h = layers.Conv2DTranspose(64, 3, strides=2, padding="same", **relu)(h)
h = layers.Conv2DTranspose(32, 3, strides=2, padding="same", **relu)(h)
logits = layers.Conv2DTranspose(1, 3, padding="same", name="logits")(h)
decoder = keras.Model(inputs, logits, name="decoder")

# %% tags=["nbval-check-output"]
for layer in decoder.layers:
    print(f"{layer.name:<20} {layer.output.shape!s:<20} {layer.count_params():>7,}")
print(f"together {decoder.count_params():>40,}")

# %% [markdown]
# These are the published counts of this architecture, which keras.io's example and many posts share.

# %% tags=["nbval-check-output"]
assert encoder.count_params() == 69_076
assert decoder.count_params() == 65_089
print(f"{encoder.count_params():,} + {decoder.count_params():,} = {encoder.count_params() + decoder.count_params():,}")

# %% [markdown]
# ## Write the loss
#
# The model maximises the ELBO of chapter 02. Keras minimises, so the loss of one image is
#
# $$ -\text{ELBO}(x) = \underbrace{-\log p_\theta(x|z)}_{\text{reconstruction}}
#    + \underbrace{\tfrac12 \sum_j \left( \mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2 \right)}_{\text{KL}},
#    \qquad z \sim q_\phi(z|x). \tag{4.3} $$
#
# The first term sums over the 784 pixels, the second over the latent dimensions; both are in nats. A batch's loss is the
# average over its images. Compute it for one digit by hand, in NumPy, and compare.

# %% tags=["eq-4.3"]
x = x_val[:1]
z_mean, z_log_var, z = (np.array(t, "float64") for t in encoder(x))
p = 1 / (1 + np.exp(-np.array(decoder(z), "float64")))
reconstruction = -np.sum(x * np.log(p) + (1 - x) * np.log(1 - p))
kl = 0.5 * np.sum(z_mean**2 + np.exp(z_log_var) - 1 - z_log_var)
print(f"by hand: {reconstruction:.3f} + {kl:.3f} nats")

np.testing.assert_allclose(-bernoulli_log_prob(x, decoder(z))[0], reconstruction, rtol=1e-5)
np.testing.assert_allclose(gaussian_kl(z_mean, z_log_var)[0], kl, rtol=1e-5)

# %% [markdown]
# ## Write the model
#
# A Keras model needs two things from you: `call`, which says what it computes, and `compute_loss`, which says what is
# to be small. Everything else – the training loop, metrics on held-out data, callbacks, compiled steps – comes with
# `keras.Model`.


# %%
class WrittenOutVAE(keras.Model):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def call(self, x):
        z_mean, z_log_var, z = self.encoder(x)
        return {"z_mean": z_mean, "z_log_var": z_log_var, "logits": self.decoder(z)}

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        reconstruction_loss = -bernoulli_log_prob(x, y_pred["logits"])
        kl_loss = gaussian_kl(y_pred["z_mean"], y_pred["z_log_var"])
        return ops.mean(reconstruction_loss + kl_loss)


# %% [markdown]
# `vae_utils.models.VAE` is this class with two metrics, a weight `beta`, and checks of what you pass in. Given the same
# output, it computes the same loss:

# %%
from vae_utils.models import VAE, conv_vae

vae = VAE(encoder, decoder)
outputs = vae(x_val[:100])
written_out = WrittenOutVAE(encoder, decoder).compute_loss(x_val[:100], None, outputs)
assert written_out == vae.compute_loss(x_val[:100], None, outputs)
print(f"before training: {float(written_out):.1f} nats per image")

# %% [markdown]
# Before training, the logits hover around zero: every pixel is close to a fair coin, and 784 fair coins cost
# $784 \log 2 \approx 543$ nats. Two marks help you to read a loss from here on:
#
# - the **floor**: grey pixels are not coin flips. Even a perfect reconstruction, $p = x$, leaves the entropy of the
#   greys;
# - the **ceiling**: a model that ignores $z$ can only learn how black each pixel is on average.

# %%
floor = evaluation.reconstruction_floor(x_val).mean()
mean_image = np.clip(x_train.mean(axis=0, keepdims=True), 1e-3, 1 - 1e-3)
mean_logits = np.broadcast_to(np.log(mean_image / (1 - mean_image)), x_val.shape)
ceiling = -float(ops.mean(bernoulli_log_prob(x_val, mean_logits)))
print(f"784 fair coins {784 * np.log(2):.1f}, ceiling {ceiling:.1f}, floor {floor:.1f} nats per image")

# %% [markdown]
# A VAE that stays near the ceiling has collapsed: it doesn't use its latent space.
#
# ## Train it
#
# The recipe: Adam, batches of 128. The learning rate warms up over 200 steps to 2·10⁻³, then falls to zero along half
# a cosine, so that the last epochs fine-tune. We build a fresh model with `conv_vae()`, which is what you wrote above.

# %%
keras.utils.set_random_seed(1)
vae = conv_vae()
assert vae.count_params() == encoder.count_params() + decoder.count_params()

BATCH = 128
EPOCHS = 2 if vae_utils.QUICK else 14
steps = EPOCHS * -(-len(x_train) // BATCH)
warmup = min(200, steps // 4)
rate = keras.optimizers.schedules.CosineDecay(0.0, steps - warmup, warmup_target=2e-3, warmup_steps=warmup)
vae.compile(keras.optimizers.Adam(rate), steps_per_execution=10)

# %%
history = vae.fit(x_train, batch_size=BATCH, epochs=EPOCHS, validation_data=x_val)

# %% [markdown]
# Watch three things in the curves: the loss on held-out digits, whether it parts from the training loss, and the two
# terms pulling in opposite directions. The grey crosses are the validation losses that a
# post of 2020 reports for the same
# architecture (batch 32, Adam at 10⁻³).

# %% mystnb={"figure": {"caption": "Training the convolutional VAE: the loss, and its two terms.", "name": "fig-04-history"}, "image": {"alt": "Three panels over the epochs. The loss falls steeply, then slowly, and the held-out curve stays close to the training curve. The reconstruction loss falls. The KL loss rises."}}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for ax, metric in zip(axes, ["loss", "reconstruction_loss", "kl_loss"], strict=True):
    plotting.plot_history(history, metric, ax=ax)
if digits.name == "mnist":
    axes[0].plot([1, 5, 10, 12], [170.15, 154.75, 151.79, 151.33], "x", color="gray", label="2020 post")
    axes[0].set_ylim(top=180)
    axes[0].legend()

# %%
for name in ("val_loss", "val_reconstruction_loss", "val_kl_loss"):
    print(f"{name:<24} {history.history[name][-1]:7.2f} nats per image")

# %% [markdown]
# The held-out loss follows the training loss closely: with a code of two numbers, this model has little room to overfit.
# The reconstruction gets better while the KL rises. The model buys detail by saying more in its code.
#
# ## Look at the latent space
#
# Encode the validation digits and draw each at its `z_mean`. No label was used in training.

# %% mystnb={"figure": {"caption": "The validation digits in the latent space, coloured by class.", "name": "fig-04-latent"}, "image": {"alt": "Scatter plot of the two latent means. Points of one class lie together; the digit of each class stands at the class mean. Fours and nines overlap, zeros and ones lie far from the others."}}
z_mean, z_log_var = vae.encode(x_val)
y_val = digits.y_train[-held_out:][: len(x_val)]
ax = plotting.plot_latent_space(z_mean, y_val)
# %% [markdown]
# Classes form clusters, and clusters that look alike as shapes lie side by side. The clusters overlap most where you
# might misread a digit yourself.
#
# Each point is the centre of a small Gaussian, $q_\phi(z|x)$. How small? Compare its standard deviation with the spread
# of the centres:

# %%
sigma = np.exp(0.5 * z_log_var)
print("median standard deviation of q(z|x):", np.median(sigma, axis=0).round(3))
print("standard deviation of the centres:  ", z_mean.std(axis=0).round(3))

# %% [markdown]
# ## Walk over the manifold
#
# Now the other way: decode a 30×30 grid of points, all 900 in one call, and draw each image at its place. The axes are
# those of the scatter plot: $z_0$ to the right, $z_1$ up.

# %% mystnb={"figure": {"caption": "What the decoder draws at each point of the latent space.", "name": "fig-04-manifold"}, "image": {"alt": "A 30 by 30 grid of decoded digits over the latent square from minus 2 to 2. Digits change gradually into their neighbours; every region shows the digit whose cluster lies there in the scatter plot."}}
ax = plotting.plot_manifold(vae, n=30, limit=2)
# %% [markdown]
# Neighbours look alike, and digits turn into one another through shapes that are no digit at all. Find a cluster in the
# scatter plot and the same place here: you see that digit.
#
# ## Reconstruct
#
# Encode a digit, decode its `z_mean`. What survives a code of two numbers?

# %% mystnb={"figure": {"caption": "Validation digits and their reconstructions from two numbers each.", "name": "fig-04-reconstructions"}, "image": {"alt": "Ten digits above their reconstructions. The reconstructions are smoother, and some unusual digits come back as another class."}}
ax = plotting.plot_reconstructions(vae, x_val[:10])
# %% [markdown]
# The class and the slant usually survive; the personal touch of the hand does not. Where strokes are uncertain, the
# reconstruction is grey: the decoder gives probabilities, and grey is its way to say "perhaps".
#
# Score the reconstructions of the digits one by one and look at the best and the worst.

# %% mystnb={"figure": {"caption": "The five digits with the highest ELBO and the five with the lowest, above their reconstructions.", "name": "fig-04-best-worst"}, "image": {"alt": "Ten digits above their reconstructions. The first five are thin ones, reconstructed well. The last five are thick or oddly shaped digits, reconstructed badly."}}
elbo_val = evaluation.elbo(vae, x_val, num_samples=10)
order = np.argsort(-elbo_val)
ax = plotting.plot_reconstructions(vae, x_val[np.r_[order[:5], order[-5:]]])
# %%
print("best: ", elbo_val[order[:5]].round(1), "nats")
print("worst:", elbo_val[order[-5:]].round(1), "nats")

# %% [markdown]
# A thin one has little ink to get wrong. A wide digit in heavy ink has many pixels, and each costs.
#
# ## Draw new digits
#
# A VAE is a generative model: draw $z$ from the prior $N(0, I)$, decode, and you have a digit that nobody wrote.

# %% mystnb={"figure": {"caption": "Fifty samples from the prior, decoded.", "name": "fig-04-samples"}, "image": {"alt": "Five rows of ten generated digits. Most are legible, a few are blends of two classes."}}
ax = plotting.plot_digits(vae.sample(50, seed=1))
# %% [markdown]
# Most can be read. A few are in-between shapes: the prior also covers the regions between clusters.
#
# ## Touch the test digits once
#
# Everything so far was decided on training and validation digits. Now the number to report: the ELBO of the 10,000
# test digits, with its standard error.

# %%
x_test = digits.x_test[:500] if vae_utils.QUICK else digits.x_test
elbo_test = evaluation.elbo(vae, x_test, num_samples=10)
standard_error = elbo_test.std() / np.sqrt(len(elbo_test))
print(f"held-out −ELBO: {-elbo_test.mean():.2f} ± {standard_error:.2f} nats per image")

# %%
if digits.name == "mnist" and not vae_utils.QUICK:
    assert -elbo_test.mean() < 152, "the 2020 post stopped at 151.33 on its test digits"

# %% [markdown]
# The standard error says how much the number would move with another 10,000 digits from the same hands. It is not the
# spread over trainings: another seed can move the result by a nat.
#
# `evaluate` gives the same loss from one draw of $z$ per digit, as Keras users expect it. The two agree, because 10,000
# digits average the noise away:

# %%
scores = vae.evaluate(x_test, batch_size=500, verbose=0, return_dict=True)
print({name: round(value, 2) for name, value in scores.items()})
assert abs(scores["loss"] + elbo_test.mean()) < 1

# %% [markdown]
# ## Save it, load it
#
# The whole model, its two halves included, goes into one file. Loading stays in Keras' safe mode: nothing in the file is
# run as code.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    vae.save(Path(folder) / "conv.keras")
    loaded = keras.saving.load_model(Path(folder) / "conv.keras")

assert loaded.evaluate(x_test, batch_size=500, verbose=0, return_dict=True) == scores

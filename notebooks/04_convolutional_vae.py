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
# **What you'll do.** You build a convolutional VAE with two latent dimensions, train it on MNIST, and score it on
# digits it has never seen.
#
# **What you'll learn**
#
# - to halve and double images with strided convolutions, and to count the layers' parameters by hand;
# - to write a VAE as a Keras model that `fit`, `evaluate`, `predict` and `save` understand;
# - to read its loss: what the reconstruction costs, what the code costs, what no model can avoid;
# - to look inside: the latent space, the manifold of digits, reconstructions, samples;
# - to compute $\log p(x)$ itself on a grid, and see what the ELBO leaves out, digit by digit.
#
# **What you'll need.** Basic Keras. Chapter 02 derives the loss; here you only need to recognise its two terms. The
# part on $\log p(x)$ also uses that chapter's posterior and its importance-weighted bound.
#
# **Time.** 30 minutes to read. The full run takes 6 to 11 minutes on two cores without a GPU; with
# `VAE_UTILS_QUICK=1` in the environment it takes less than a minute and trains on a small part of the digits.

# %%
import os
import sys

if "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
    get_ipython().run_line_magic("pip", "install -q --no-deps git+https://github.com/every-equation-executed/vae@main")
    import vae_utils  # if it is missing, pip says why above: is this notebook online? (on Kaggle, switch Internet on)

# %%
import tempfile
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers, ops
from scipy.special import logsumexp
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import vae_utils
from vae_utils import evaluation, plotting
from vae_utils.datasets import load_mnist, load_optical_digits
from vae_utils.distributions import bernoulli_log_prob, gaussian_kl, gaussian_log_prob
from vae_utils.layers import Sampling, reparameterize

tf.get_logger().setLevel("ERROR")  # building one model after another is no reason to warn
keras.utils.set_random_seed(0)
QUICK = os.environ.get("VAE_UTILS_QUICK", "") not in ("", "0")
print("quick run" if QUICK else "full run")

# %% [markdown]
# ## Load the digits
#
# `load_mnist` gives images as `float32` in [0, 1], of shape `(n, 28, 28, 1)`. Without a network it falls back to a
# smaller set of real digits, and says so.

# %%
digits = load_mnist(fallback="optical-digits")
print(digits.name, digits.x_train.shape, digits.x_test.shape)

# %% [markdown]
# You need three sets. The model learns from the **training** digits. You choose its recipe by the **validation**
# digits, the last part of the training set. The **test** digits are scored only when every choice has been made.

# %%
held_out = len(digits.x_train) // 12
x_train, x_val = digits.x_train[:-held_out], digits.x_train[-held_out:]
if QUICK:
    x_train, x_val = x_train[:2_000], x_val[:500]
print(len(x_train), "to train,", len(x_val), "to validate,", len(digits.x_test), "to test")

# %% mystnb={"figure": {"caption": "The first twenty validation digits.", "name": "fig-04-digits"}, "image": {"alt": "Two rows of ten handwritten digits, black ink on white."}}
ax = plotting.plot_digits(x_val[:20])
# %% [markdown]
# ## Convolve a 4×4 image by hand
#
# Start with the smallest example. A 3×3 kernel with stride 2 visits every second pixel, in both directions,
# multiplies the nine pixels there by its nine weights, and adds:
#
# $$ y_{ij} = \sum_{a=0}^{2} \sum_{b=0}^{2} w_{ab} \, x_{2i+a,\,2j+b}, \qquad x = 0 \text{ outside the image.} \tag{4.1} $$
#
# With indices from 0, a 4×4 image gives a 2×2 result. Compute it with loops, and compare with Keras:

# %% tags=["eq-4.1"]
image = np.arange(16.0).reshape(4, 4)
kernel = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
padded = np.pad(image, (0, 1))  # one row and one column of zeros, below and to the right
result = np.array([[np.sum(kernel * padded[i : i + 3, j : j + 3]) for j in (0, 2)] for i in (0, 2)])

by_keras = ops.conv(image[None, ..., None], kernel[..., None, None], strides=2, padding="same")
np.testing.assert_array_equal(result, by_keras[0, ..., 0])
print(result)

# %% [markdown]
# (A mathematician would call this a cross-correlation: the kernel is not flipped.) The result is linear in the image.
# So there is a matrix $W$ with 4 rows and 16 columns that does the same to the flattened image. Each column says which
# results one pixel reaches. You find it by convolving one pixel at a time:

# %%
pixels = np.eye(16).reshape(16, 4, 4, 1)
W = ops.convert_to_numpy(ops.conv(pixels, kernel[..., None, None], strides=2, padding="same")).reshape(16, 4).T
assert W.shape == (4, 16) and np.array_equal(W @ image.ravel(), result.ravel())

# %% [markdown]
# A **transposed** convolution multiplies by the transpose of this matrix. It takes 4 numbers to 16, a 2×2 image to a
# 4×4 one:
#
# $$ x' = W^\top y. \tag{4.2} $$
#
# It is not the inverse: it gives the right shape, other numbers, and weights for the decoder to learn.

# %% tags=["eq-4.2"]
doubled = ops.conv_transpose(result[None, ..., None], kernel[..., None, None], strides=2, padding="same")
np.testing.assert_array_equal(W.T @ result.ravel(), ops.convert_to_numpy(doubled).ravel())
assert not np.allclose(doubled[0, ..., 0], image)
print(ops.convert_to_numpy(doubled[0, ..., 0]))

# %% [markdown]
# Which pixel reaches which? In the figure, each of the 16 pixels on the left names the results on the right that it
# touches. Read it from left to right for the convolution, from right to left for its transpose.

# %% mystnb={"figure": {"caption": "A 3 by 3 kernel with stride 2 between a 4 by 4 and a 2 by 2 image. A pixel's letters name the results that it reaches.", "name": "fig-04-reach"}, "image": {"alt": "Left, a 4 by 4 grid; each cell holds one, two or four of the letters a, b, c and d. The cell in row 2, column 2 holds all four. Right, a 2 by 2 grid of the cells a, b, c and d."}}
reach = (W != 0).reshape(4, 4, 4)  # result, row, column
figure, axes = plt.subplots(1, 2, figsize=(6.5, 3.4), layout="constrained")
axes[0].imshow(reach.sum(axis=0), cmap="Blues", vmin=0, vmax=8)
for i, j in np.ndindex(4, 4):
    axes[0].text(j, i, "".join(np.array(list("abcd"))[reach[:, i, j]]), ha="center", va="center", fontsize=14)
axes[1].imshow(np.ones((2, 2)), cmap="Blues", vmin=0, vmax=8, extent=(-0.5, 3.5, 3.5, -0.5))
for k, letter in enumerate("abcd"):
    axes[1].text(0.5 + 2 * (k % 2), 0.5 + 2 * (k // 2), letter, ha="center", va="center", fontsize=14)
for ax, title in zip(axes, ["4×4 pixels", "2×2 results"], strict=True):
    ax.set(title=title, xlabel="column", ylabel="row")
for line in (0.5, 1.5, 2.5):
    axes[0].axhline(line, color="white"), axes[0].axvline(line, color="white")
axes[1].axhline(1.5, color="white"), axes[1].axvline(1.5, color="white")
axes[0].set(xticks=range(4), yticks=range(4))
_ = axes[1].set(xticks=[0.5, 2.5], xticklabels=[0, 1], yticks=[0.5, 2.5], yticklabels=[0, 1])

# %% [markdown]
# Pixels are not treated alike: one reaches four results, the other six in its row and its column two, the remaining
# nine one. The transposed layer hands this on. Give it an image of ones and a kernel of ones, and see how often each
# pixel of the output is written:

# %%
ones = ops.conv_transpose(np.ones((1, 4, 4, 1)), np.ones((3, 3, 1, 1)), strides=2, padding="same")
print(ops.convert_to_numpy(ones[0, ..., 0]).astype(int))

# %% [markdown]
# Every second row and column gets more. Such a checkerboard shows in some generated images, unless the kernel learns to
# make up for it.
#
# ## Halve the image: the encoder
#
# (4.1) holds for every even size; for an odd one, Keras also puts a row of zeros above and a column to the left. Either
# way, $n$ pixels on a side become, with stride $s$ and `padding="same"`,
#
# $$ m = \lceil n / s \rceil \tag{4.3} $$
#
# pixels. From 28 you come to 14, then to 7.

# %% tags=["eq-4.3"]
for n, stride in [(28, 2), (14, 2), (7, 2), (28, 3), (5, 4)]:
    layer = layers.Conv2D(1, kernel_size=3, strides=stride, padding="same")
    m = layer(np.zeros((1, n, n, 1))).shape[1]
    assert m == len(range(0, n, stride)), "one result per stride, the first pixel included"
    print(f"{n} pixels, stride {stride} → {m}")

# %% [markdown]
# Each of the $c_{\text{out}}$ output channels looks at a $k \times k$ window of all $c_{\text{in}}$ input channels and
# adds one bias. So the layer has
#
# $$ (k \cdot k \cdot c_{\text{in}} + 1) \, c_{\text{out}} \tag{4.4} $$
#
# parameters, whatever the size of the image. Count the two convolutions of our encoder, and two others:

# %% tags=["eq-4.4", "nbval-check-output"]
for k, side, c_in, c_out in [(3, 28, 1, 32), (3, 14, 32, 64), (5, 28, 3, 8), (1, 7, 64, 2)]:
    layer = layers.Conv2D(c_out, kernel_size=k)
    layer.build((None, side, side, c_in))
    assert layer.count_params() == (k * k * c_in + 1) * c_out
    print(f"{k}×{k}, {c_in} → {c_out} channels: {layer.count_params():,} parameters")

# %% [markdown]
# Now the encoder. Two strided convolutions bring 28×28×1 to 7×7×64; a dense layer of 16 units reads the whole of it;
# two more give `z_mean` and `z_log_var`. So for each image the encoder names a small Gaussian in the plane,
# $q_\phi(z|x)$, by its mean and the logarithm of its variance. `Sampling`, from chapter 01, draws the code `z` from it.
# Before any image is seen, codes are thought to come from the prior, $p(z) = N(0, I)$.
#
# `he_normal` scales the initial weights for ReLU layers.

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
    print(f"{type(layer).__name__:<16} {layer.output.shape!s:<20} {layer.count_params():>7,}")
print(f"together {encoder.count_params():>36,}")

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
# $\operatorname{sigmoid}(\text{logits})$, but the loss is computed from the logits themselves. There it stays finite,
# even where the sigmoid rounds to 0:

# %%
one, logit = np.ones((1, 1), "float32"), np.full((1, 1), -200, "float32")
with np.errstate(divide="ignore"):
    print("log of the sigmoid:", np.log(ops.convert_to_numpy(ops.sigmoid(logit)))[0, 0])
print("from the logits:   ", float(bernoulli_log_prob(one, logit)[0]))

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
    print(f"{type(layer).__name__:<16} {layer.output.shape!s:<20} {layer.count_params():>7,}")
print(f"together {decoder.count_params():>36,}")

# %% [markdown]
# These are the counts that keras.io's example prints for this architecture.

# %% tags=["nbval-check-output"]
assert encoder.count_params() == 69_076
assert decoder.count_params() == 65_089
print(f"{encoder.count_params():,} + {decoder.count_params():,} = {encoder.count_params() + decoder.count_params():,}")

# %% [markdown]
# ## Write the loss
#
# The model maximises the ELBO of chapter 02. Keras minimises, so the loss of one image is
#
# $$ -\text{ELBO}(x) = \underbrace{\mathbb E_{q_\phi(z|x)}[-\log p_\theta(x|z)]}_{\text{reconstruction}}
#    + \underbrace{\tfrac12 \sum_j \left( \mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2 \right)}_{\text{KL}}. \tag{4.5} $$
#
# The first term is the binary cross-entropy, *summed* over the 784 pixels; the second sums over the latent dimensions.
# Both are in nats. Training replaces the expectation by one draw of $z$, and averages the loss over the batch. Compute
# both terms for one digit in NumPy: the first from the probabilities, the second as an average of $\log q - \log p$
# over a hundred thousand draws. Then compare with `vae_utils`.

# %% tags=["eq-4.5"]
x = x_val[:1]
z_mean, z_log_var, z = (np.array(t, "float64") for t in encoder(x))
p = 1 / (1 + np.exp(-np.array(decoder(z), "float64")))
reconstruction = -np.sum(x * np.log(p) + (1 - x) * np.log(1 - p))
np.testing.assert_allclose(-bernoulli_log_prob(x, decoder(z))[0], reconstruction, rtol=1e-5)

epsilon = np.random.default_rng(0).standard_normal((100_000, 2))
draws = z_mean + np.exp(0.5 * z_log_var) * epsilon
log_ratio = np.sum(0.5 * draws**2 - 0.5 * epsilon**2 - 0.5 * z_log_var, axis=1)
kl, standard_error = log_ratio.mean(), log_ratio.std() / np.sqrt(100_000)
assert abs(float(gaussian_kl(z_mean, z_log_var)[0]) - kl) < 4 * standard_error
print(f"reconstruction {reconstruction:.3f} nats, KL {kl:.4f} ± {standard_error:.4f} nats")

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
        return {"z_mean": z_mean, "z_log_var": z_log_var, "parameters": self.decoder(z)}

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        reconstruction_loss = -bernoulli_log_prob(x, y_pred["parameters"])  # the logits
        kl_loss = gaussian_kl(y_pred["z_mean"], y_pred["z_log_var"])
        return ops.mean(reconstruction_loss + kl_loss)


# %% [markdown]
# `y` stands there because Keras passes it; an image is its own target, so it stays unused. What the decoder gives is
# called `parameters`, since another likelihood would take other numbers than logits. `vae_utils.VAE` is this class with
# a choice of likelihoods, two metrics, a weight `beta` for the KL, and checks of what you pass in. Its `predict` decodes
# `z_mean` to probabilities, and its `evaluate` draws the same noise every time. Given the same output, it computes the
# same loss:

# %%
from vae_utils import VAE, conv_vae, dense_vae

vae = VAE(encoder, decoder)
outputs = vae(x_val[:100])
written_out = WrittenOutVAE(encoder, decoder).compute_loss(x_val[:100], None, outputs)
assert written_out == vae.compute_loss(x_val[:100], None, outputs)
print(f"before training: {float(written_out):.1f} nats per image")

# %% [markdown]
# ### The other way: write the step yourself
#
# keras.io's example overrides `train_step` and computes the gradient with TensorFlow's tape. You see every line of it,
# and it runs on TensorFlow only.


# %%
class TrainStepVAE(keras.Model):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def train_step(self, x):
        with tf.GradientTape() as tape:
            z_mean, z_log_var, z = self.encoder(x)
            loss = ops.mean(-bernoulli_log_prob(x, self.decoder(z)) + gaussian_kl(z_mean, z_log_var))
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return {"loss": loss}


# %% [markdown]
# Do both take the same step? Give them the same seed, hence the same initial weights and the same noise, and train on
# one batch, with plain gradient descent, whose step shows the size of the gradient too.

# %%
changes = []
for wrap in (VAE, TrainStepVAE):
    keras.utils.set_random_seed(5)
    halves = conv_vae()
    before = np.concatenate([w.ravel() for w in halves.get_weights()])
    model = wrap(halves.encoder, halves.decoder)
    model.compile(keras.optimizers.SGD(1e-5))
    model.fit(x_train[:128], batch_size=128, verbose=0)
    changes.append(np.concatenate([w.ravel() for w in halves.get_weights()]) - before)

size, difference = np.linalg.norm(changes[0]), np.linalg.norm(changes[0] - changes[1])
print(f"length of the step {size:.1e}, difference between the two {difference:.1e}")
assert difference + size > 0 and difference < 1e-3 * size

# %% [markdown]
# The two differ by rounding only. The hand-written one has no `test_step`: to score held-out digits you would write
# that too, and the metrics with it.

# %% [markdown]
# Three marks help you to read a loss from here on:
#
# - **fair coins**: logits of zero make every pixel a fair coin;
# - the **collapse mark**, chapter 03's independent pixels: a model that ignores $z$ can learn no more than how black
#   each pixel is on average;
# - the **floor**: a grey pixel is scored like a coin, so even a perfect reconstruction, $p = x$, pays that coin's
#   entropy.

# %%
floor = evaluation.reconstruction_floor(x_val).mean()
mean_image = np.clip(x_train.mean(axis=0, keepdims=True), 1e-3, 1 - 1e-3)
mean_logits = np.broadcast_to(np.log(mean_image / (1 - mean_image)), x_val.shape)
collapse = -float(ops.mean(bernoulli_log_prob(x_val, mean_logits)))
print(f"fair coins {784 * np.log(2):.1f}, collapse mark {collapse:.1f}, floor {floor:.1f} nats per image")

# %% [markdown]
# A VAE that stays near the collapse mark doesn't use its latent space.
#
# ## Train it
#
# The recipe: Adam, batches of 64. The learning rate warms up over 400 steps to 4·10⁻³, then falls to zero along half
# a cosine, so that the last epochs fine-tune. We build the model with `conv_vae()`, which is what you wrote above.

# %%
BATCH = 64
EPOCHS, STARTS = (2, 1) if QUICK else (10, 3)
steps = EPOCHS * -(-len(x_train) // BATCH)
warmup = min(400, steps // 4)


def start(seed):
    keras.utils.set_random_seed(seed)
    vae = conv_vae()
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps - warmup, warmup_target=4e-3, warmup_steps=warmup)
    vae.compile(keras.optimizers.Adam(rate), steps_per_execution=10)
    vae.fit(x_train, batch_size=BATCH, epochs=1, validation_data=x_val, verbose=0)
    return vae


# %% [markdown]
# With two latent dimensions, trainings differ from seed to seed, and a bad start can leave a dimension idle: its KL is
# then near zero. So make three starts of one epoch each, and look at the KL of each dimension beside the loss.

# %%
begin = time.perf_counter()
starts = [start(seed) for seed in range(STARTS)]
first_epochs = [vae.history.history for vae in starts]
for seed, vae in enumerate(starts):
    z_mean, z_log_var = vae.encode(x_val)
    kl_per_dimension = ops.convert_to_numpy(gaussian_kl(z_mean[..., None], z_log_var[..., None])).mean(axis=0)
    print(f"seed {seed}: held-out loss {vae.history.history['val_loss'][0]:.1f}, KL {kl_per_dimension.round(2)} nats")

# %% [markdown]
# No dimension lies idle here: each has a KL of more than two nats. Go on with the start that has the lowest loss on
# validation digits. The optimizer goes on where it stopped.
#
# Does your machine switch off while you wait, as Colab does? Put a folder's name in place of `None`, in Colab one on
# your Drive. Keras then writes the whole training into it after each epoch. Run the notebook again after a break, and
# the training goes on where it was.

# %%
BACKUP = None  # for instance "/content/drive/MyDrive/vae-04"
callbacks = [keras.callbacks.BackupAndRestore(BACKUP, double_checkpoint=True)] if BACKUP else []
chosen = min(range(STARTS), key=lambda seed: first_epochs[seed]["val_loss"][0])
vae, first_epoch = starts[chosen], first_epochs[chosen]
assert vae.count_params() == encoder.count_params() + decoder.count_params()
if int(vae.optimizer.iterations) < steps:  # run again, this cell leaves the trained model as it is
    rest = vae.fit(
        x_train, batch_size=BATCH, epochs=EPOCHS, initial_epoch=1, validation_data=x_val, callbacks=callbacks
    )
    fit_seconds = time.perf_counter() - begin

# %% [markdown]
# Watch three things in the curves: the loss on held-out digits, whether it parts from the training loss, and the two
# terms pulling in opposite directions. The first training value, far above, is cut off. Two published runs of the same
# architecture are drawn in grey. The crosses are the validation losses of a post of 2020, *A Step Up with Variational
# Autoencoders* (batch 32, Adam at 10⁻³). The triangles are keras.io's example (batch 128, Adam at 10⁻³), which has no
# held-out digits: they are its training losses, so hold our training curve against them.

# %% mystnb={"figure": {"caption": "Training the convolutional VAE: the loss, and its two terms.", "name": "fig-04-history"}, "image": {"alt": "Three panels over the epochs. The loss falls steeply, then slowly, and the held-out curve stays close to the training curve. The reconstruction loss falls. The KL loss rises."}}
history = {name: first_epoch[name] + rest.history[name] for name in first_epoch}
figure, axes = plt.subplots(3, 1, figsize=(6, 7.5), sharex=True, layout="constrained")
for ax, metric in zip(axes, ["loss", "reconstruction_loss", "kl_loss"], strict=True):
    plotting.plot_history(history, metric, ax=ax)
if digits.name == "mnist":
    axes[0].plot([1, 5, 10, 12], [170.15, 154.75, 151.79, 151.33], "x", color="gray", label="2020 post, held out")
    axes[0].plot([5, 10], [150.98 + 6.30, 145.78 + 6.54], "^", color="gray", label="keras.io, training")
    axes[1].plot([5, 10], [150.98, 145.78], "^", color="gray")
    axes[2].plot([1, 5, 10], [3.96, 6.30, 6.54], "^", color="gray")
    axes[1].set_ylim(top=None if QUICK else 175)
    axes[0].set_ylim(top=None if QUICK else 180)
    axes[0].legend()

# %% [markdown]
# No time to train? Weights that were trained for longer, on the same training digits, ship with `vae_utils`. Their
# `manifest.json` says how they were made. Take the first `#` of the last line away to go on with them.

# %%
shipped = vae_utils.load_pretrained("conv-2d")
print(f"shipped weights: −ELBO {-evaluation.elbo(shipped, x_val).mean():.2f} nats per image on validation digits")
# vae = shipped  # goes on with the shipped weights

# %% [markdown]
# And this run, on the same digits:

# %%
for name in ("val_loss", "val_reconstruction_loss", "val_kl_loss"):
    print(f"{name:<24} {history[name][-1]:7.2f} nats per image")

# %% [markdown]
# In every epoch of this run but the last, the held-out loss lies below the training loss. Keras averages the training
# loss over the whole epoch, while the weights improve, and measures the held-out loss at the end of the epoch. After the
# last epoch they are this far apart:

# %%
apart = history["val_loss"][-1] - history["loss"][-1]
print(f"held out minus training: {apart:.2f} nats per image")

# %% [markdown]
# The reconstruction gets better while the held-out KL rises. The model buys detail by saying more in its code.
#
# ### What averaging the KL costs
#
# The first version of keras.io's example *averaged* the KL over the two latent dimensions. Its log ends with a loss of
# 145.03 = 141.34 + 3.69. Averaging two numbers halves their sum, so this model was trained with $\beta = 1/2$, and its
# KL was twice what the log says:

# %%
print(f"as printed: {141.34 + 3.69:.2f}   as −ELBO: {141.34 + 2 * 3.69:.2f} nats per image, on training data")

# %% [markdown]
# To see what the slip costs, train both ways and score both by the true −ELBO. A dense model answers in seconds, so you
# can afford three seeds of each.


# %%
def train_dense(beta, seed, epochs):
    keras.utils.set_random_seed(seed)
    model = dense_vae()
    model.beta = beta
    rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * -(-len(x_train) // 200))
    model.compile(keras.optimizers.Adam(rate), jit_compile=False, steps_per_execution=5 if QUICK else 50)
    model.fit(x_train, batch_size=200, epochs=epochs, verbose=0)
    return model


SEEDS, SLIP_EPOCHS = (1, 1) if QUICK else (3, 4)
slipped = {beta: [train_dense(beta, seed, SLIP_EPOCHS) for seed in range(SEEDS)] for beta in (1.0, 0.5)}
slip = {beta: [-evaluation.elbo(model, x_val).mean() for model in models] for beta, models in slipped.items()}
for beta, losses in slip.items():
    print(f"β = {beta}: −ELBO {np.round(losses, 1)}, median {np.median(losses):.1f} nats per image")
print("averaged minus summed, seed by seed:", np.round(np.subtract(slip[0.5], slip[1.0]), 1))

# %% mystnb={"figure": {"caption": "The true $-$ELBO after training with the KL summed and with the KL averaged, three seeds each. A line joins the two models of one seed.", "name": "fig-04-slip"}, "image": {"alt": "Two rows of three dots, one for the summed and one for the averaged KL, along an axis of minus ELBO. Dots of one seed have the same colour, and a line joins them."}}
figure, ax = plt.subplots(figsize=(6, 2.2), layout="constrained")
for seed, color in zip(range(SEEDS), ["#3f90da", "#ffa90e", "#bd1f01"], strict=False):
    ax.plot([slip[1.0][seed], slip[0.5][seed]], [0, 1], "o-", color=color, label=f"seed {seed}")
ax.set(xlabel="−ELBO on validation digits, nats per image", yticks=[0, 1], ylim=(-0.6, 1.6))
ax.set_yticklabels(["summed, β = 1", "averaged, β = ½"])
legend = figure.legend(loc="outside right center")
# %% [markdown]
# The slip costs up to 0.8 nats here, less than the seeds differ by. So you won't notice it in one curve.
#
# What does it do to the picture? The KL is the price of moving a code away from the prior. At half the price, you
# expect the codes to spread. The prior has a standard deviation of 1 in each dimension, and 5 % of its draws fall
# outside the circle. Count the codes outside, for the first seed of each.

# %% mystnb={"figure": {"caption": "Codes of the validation digits after training with the KL summed (left) and averaged (right), with the circle that holds 95 % of the prior.", "name": "fig-04-slip-codes"}, "image": {"alt": "Two scatter plots of codes on the same axes, each with a circle of radius 2.45. The codes on the right reach farther out than those on the left."}}
figure, axes = plt.subplots(1, 2, figsize=(7, 3.7), sharex=True, sharey=True, layout="constrained")
turn = np.linspace(0, 2 * np.pi, 100)
for ax, beta, title in zip(axes, (1.0, 0.5), ["summed, β = 1", "averaged, β = ½"], strict=True):
    spread, _ = slipped[beta][0].encode(x_val)
    outside = np.mean(np.linalg.norm(spread, axis=1) > 2.45)
    print(f"{title}: standard deviation {spread.std():.2f}, {outside:.1%} outside the circle of 95 %")
    ax.plot(*spread.T, ".", markersize=2, color="#3f90da")
    ax.plot(2.45 * np.cos(turn), 2.45 * np.sin(turn), color="black")
    ax.set(title=title, xlabel="$z_0$", aspect="equal")
_ = axes[0].set_ylabel("$z_1$")
# %% [markdown]
# With the summed KL, already far more than 5 % of the codes lie outside. With the averaged KL, more still, in this
# seed. Only 5 % of the samples from the prior fall outside the circle, so they seldom show what these codes stand for.
#
# ## Look at the latent space
#
# Encode the validation digits and draw each at its `z_mean`. No label was used in training. Which classes mix? Let the
# fifteen nearest codes, its own included, vote on the class of each digit. Count the commonest errors.

# %% mystnb={"figure": {"caption": "The validation digits in the latent space, coloured by class.", "name": "fig-04-latent"}, "image": {"alt": "Scatter plot of the two latent means. Points of one class lie together; the digit of each class stands at the class mean. Some clusters overlap, others stand apart."}}
z_mean, z_log_var = vae.encode(x_val)
y_val = digits.y_train[-held_out:][: len(x_val)]
ax = plotting.plot_latent_space(z_mean, y_val)
# %%
vote = KNeighborsClassifier(15).fit(z_mean, y_val).predict(z_mean)
wrong, counts = np.unique(np.stack([y_val, vote])[:, vote != y_val], axis=1, return_counts=True)
for k in np.argsort(-counts)[:4]:
    print(f"a {wrong[0, k]} among codes of {wrong[1, k]}: {counts[k]} digits")
print(f"in all {np.mean(vote != y_val):.1%} of the digits")

# %% [markdown]
# Classes form clusters, and the clusters that mix are those of digits with similar strokes.
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
# those of the scatter plot, as far as it lies within ±2: $z_0$ to the right, $z_1$ up.

# %% mystnb={"figure": {"caption": "What the decoder draws at each point of the latent space.", "name": "fig-04-manifold"}, "image": {"alt": "A 30 by 30 grid of decoded digits over the latent square from minus 2 to 2. Digits change gradually into their neighbours. Sevens fill the upper left, nines the lower left, ones the upper right, zeros the lower right, and the other classes share the middle. Along the lower edge, to the left, the images break up into dots and short strokes."}}
ax = plotting.plot_manifold(vae, n=30, limit=2)
# %% [markdown]
# Neighbours look alike, and digits turn into one another through shapes that are no digit at all. Find a cluster in the
# scatter plot and its place here: you see that digit. Now find a place where the scatter plot has no points, such as
# the left part of the lower edge. The images break up there: the decoder had no codes there to learn from.
#
# ## Reconstruct
#
# Encode a digit, decode its `z_mean`. What survives a code of two numbers?

# %% mystnb={"figure": {"caption": "Validation digits and their reconstructions from two numbers each.", "name": "fig-04-reconstructions"}, "image": {"alt": "Ten digits above their reconstructions. The reconstructions are smoother, and some unusual digits come back as another class."}}
ax = plotting.plot_reconstructions(vae, x_val[:10])
# %% [markdown]
# The reconstructions are smoother than the digits, and some come back as another class. Grey means that the decoder is
# unsure, or that the ink is grey: it gives probabilities.
#
# Score the digits one by one by their ELBO and look at the best and the worst. Ink costs: print how the score goes with
# the amount of it.

# %% mystnb={"figure": {"caption": "The five digits with the highest ELBO and the five with the lowest, above their reconstructions.", "name": "fig-04-best-worst"}, "image": {"alt": "Ten digits above their reconstructions. The first five show the digit 1 in thin strokes, reconstructed well. The last five are a thick eight, a two with a stroke behind it, two more thick eights and a thick zero. The reconstructions of the two and the zero look like a six, that of an eight like a three, the others are blurs."}}
elbo_val = evaluation.elbo(vae, x_val, num_samples=10)
order = np.argsort(-elbo_val)
ax = plotting.plot_reconstructions(vae, x_val[np.r_[order[:5], order[-5:]]])
# %%
print("best: ", elbo_val[order[:5]].round(1), "nats")
print("worst:", elbo_val[order[-5:]].round(1), "nats")
ink = x_val.mean(axis=(1, 2, 3))
print(f"correlation of −ELBO with ink: {np.corrcoef(-elbo_val, ink)[0, 1]:.2f}")

# %% [markdown]
# The five best are all the digit 1 in thin strokes: there is little ink to get wrong. More ink goes with a higher
# −ELBO. But ink doesn't explain all: one of the worst digits is thin. None of these five comes back as itself.
#
# ## Draw new digits
#
# A VAE is a generative model: draw $z$ from the prior $N(0, I)$, decode, and you have a digit that nobody wrote. (What
# you see is the mean image, the probability of each pixel; a sample of $p_\theta(x|z)$ would toss a coin for each.)

# %% mystnb={"figure": {"caption": "Fifty samples from the prior, decoded.", "name": "fig-04-samples"}, "image": {"alt": "Five rows of ten generated images. Most are smooth digits, grey at the edges. Some look like blends of two classes, and a few are broken rings or loose black pieces."}}
ax = plotting.plot_digits(vae.sample(50, seed=1))
# %% [markdown]
# Some are in-between shapes: the prior also covers the regions between clusters. A few are broken: they probably come
# from places where the encoder puts no digit, such as that part of the manifold's lower edge.
#
# ## Score the test digits
#
# Everything was decided on training and validation digits. Now the number to report: the ELBO of the test digits, with
# its standard error.

# %%
x_test = digits.x_test[:500] if QUICK else digits.x_test
elbo_test = evaluation.elbo(vae, x_test, num_samples=5)
standard_error = elbo_test.std() / np.sqrt(len(elbo_test))
print(f"held-out −ELBO: {-elbo_test.mean():.2f} ± {standard_error:.2f} nats per image")

# %%
if digits.name == "mnist" and not QUICK:
    assert -elbo_test.mean() < 151.33, "where the 2020 post stopped"

# %% [markdown]
# The standard error says how much the number would move with other test digits of the same kind. It does not say how
# much the number would move if you trained again with another seed. The dense models of three seeds, further above,
# give an idea of that. The same convolutional training from six other starts is in the book, on the page *See how long
# you wait*; so is its run with the averaged KL.
#
# `evaluate` gives the same loss from one draw of $z$ per digit. The two agree within the noise of that one draw:

# %%
scores = vae.evaluate(x_test, batch_size=500, verbose=0, return_dict=True)
print({name: round(value, 2) for name, value in scores.items()})
one_draw = np.std(evaluation.elbo(vae, x_test, seed=1) - evaluation.elbo(vae, x_test, seed=2)) / np.sqrt(2)
assert abs(scores["loss"] + elbo_test.mean()) < 4 * one_draw * np.sqrt(1.2 / len(x_test)), "four standard errors"

# %% [markdown]
# ## Save it, load it
#
# The whole model, its two halves included, goes into one file. Loading stays in Keras' safe mode: nothing in the file
# is run as code.

# %%
with tempfile.TemporaryDirectory() as folder:
    vae.save(Path(folder) / "conv.keras")
    loaded = keras.saving.load_model(Path(folder) / "conv.keras")

again = loaded.evaluate(x_test, batch_size=500, verbose=0, return_dict=True)
np.testing.assert_allclose(list(again.values()), list(scores.values()), rtol=1e-5)
assert int(loaded.optimizer.iterations) == int(vae.optimizer.iterations)
print("loaded, it scores", round(again["loss"], 2))

# %% [markdown]
# `evaluate` draws the same noise every time, so the two numbers can be compared. The optimizer's state came along, but
# its learning rate has run down to zero. To go on training, compile anew with a small constant rate:

# %%
loaded.compile(keras.optimizers.Adam(1e-4), steps_per_execution=5)
more = loaded.fit(x_train[:5_000], batch_size=BATCH, verbose=0).history
print(f"a little more training, on part of the digits: loss {more['loss'][0]:.2f}")

# %% [markdown]
# Don't compare this loss with the one above. It is measured on 5,000 training digits, the other on test digits.
#
# And the encoder alone is a model too:

# %%
assert isinstance(loaded.encoder, keras.Model)
z_mean, z_log_var, z = loaded.encoder(x_val[:3])
print(z_mean.shape, z_log_var.shape, z.shape)

# %% [markdown]
# ## Put the dense VAE beside it
#
# Is the convolution worth its time? Train the dense VAE of chapter 03 and compare at equal latent size.

# %%
begin = time.perf_counter()
dense = train_dense(1.0, 0, 1 if QUICK else 20)
seconds = time.perf_counter() - begin
dense_test = evaluation.elbo(dense, x_test, num_samples=5)
paired = dense_test - elbo_test  # both models score the same digits
print(f"dense {dense.count_params():>8,} parameters, {seconds:4.0f} s, −ELBO {-dense_test.mean():.2f}")
print(f"conv  {vae.count_params():>8,} parameters, {fit_seconds:4.0f} s, −ELBO {-elbo_test.mean():.2f}")
print(f"dense minus conv: {-paired.mean():+.2f} ± {paired.std() / np.sqrt(len(paired)):.2f} nats per image")

# %% [markdown]
# Read the last line: the difference, on the same digits. The convolutional VAE's seconds include its three starts; it
# has a third of the parameters. One training each is no proof of which is better, since seeds differ by more than the
# standard error. Chapter 03 trains the dense VAE for longer, and it comes nearer. The same page of the book has both
# with 20 latent dimensions.

# %% mystnb={"figure": {"caption": "The same digits (top) through the convolutional and the dense VAE.", "name": "fig-04-side-by-side"}, "image": {"alt": "Three rows of ten digits: originals, reconstructions by the convolutional VAE, reconstructions by the dense VAE. The two rows of reconstructions are much alike."}}
x = x_val[:10]
ax = plotting.plot_digits(np.concatenate([x, vae.predict(x, verbose=0), dense.predict(x, verbose=0)]))
ax.set_axis_on()
ax.set_xticks([])
_ = ax.set_yticks([14, 42, 70], ["digit", "conv", "dense"])

# %% mystnb={"figure": {"caption": "The manifolds of the convolutional (left) and the dense VAE (right).", "name": "fig-04-two-manifolds"}, "image": {"alt": "Two 15 by 15 grids of decoded digits. The classes lie at different places: on the left, sevens fill the upper left, ones the upper right and zeros the lower right; on the right, zeros fill the lower left, nines and sevens the top, ones the lower right. The images break up at the lower left of the left grid and at the upper left of the right grid."}}
figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
plotting.plot_manifold(vae, n=15, ax=axes[0]).set_title("convolutional")
_ = plotting.plot_manifold(dense, n=15, ax=axes[1]).set_title("dense")
# %% [markdown]
# ## Make it faster
#
# The dense model trains in seconds, partly because of its settings. Change one setting at a time, and time one epoch of
# 6,400 digits. The first epoch isn't counted, since TensorFlow builds its program in it. Of the next two, take the
# faster.

# %%
x_fast = x_train[: 640 if QUICK else 6_400]


def seconds_per_epoch(build, batch_size, steps_per_execution=1, jit_compile=False):
    model, seconds = build(), []
    model.compile("adam", jit_compile=jit_compile, steps_per_execution=steps_per_execution)
    for _ in range(3):
        begin = time.perf_counter()
        model.fit(x_fast, batch_size=batch_size, verbose=0)
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


# %% [markdown]
# Two settings: images per batch, and training steps per call from Python (`steps_per_execution`). Guess first, for each
# line, how much it helps.

# %%
settings = {
    "dense, batch 100": (dense_vae, 100),
    "dense, batch 200": (dense_vae, 200),
    "… and 32 steps per call": (dense_vae, 200, 32),
    "conv, batch 32": (conv_vae, 32),
    "conv, batch 64": (conv_vae, 64),
    "… and 10 steps per call": (conv_vae, 64, 10),
}
seconds = {name: seconds_per_epoch(*setting) for name, setting in settings.items()}

# %% mystnb={"figure": {"caption": "Seconds for one epoch of 6,400 digits, as one setting after the other is added.", "name": "fig-04-seconds"}, "image": {"alt": "Six horizontal bars with their seconds, three for the dense model above three for the convolutional one. The dense bars are several times shorter than the convolutional ones."}}
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
bars = ax.barh(list(seconds), list(seconds.values()), color=["#3f90da"] * 3 + ["#ffa90e"] * 3)
ax.bar_label(bars, fmt="%.2f", padding=3)
ax.set(xlabel="seconds per epoch", xlim=(0, 1.15 * max(seconds.values())))
ax.invert_yaxis()
# %% [markdown]
# In this run each bar is shorter than the one above it, for both models. The larger batch saves more than the steps per
# call for the convolutional model, and less for the dense one. Run the cell again before you trust a small difference:
# whatever else your machine does moves the bars. And these are seconds only. Batch and rate also decide how much an
# epoch teaches: the book's page *See how long you wait* measures that for this model. It also shows what `VAE.fit`
# spares you: with the batches that Keras itself makes of an array, an epoch may last up to twice as long.
#
# There is a third setting, `jit_compile`: the compiler XLA fuses the operations of a step. It is off here. Left out,
# Keras decides. Add the line `"with XLA": (conv_vae, 64, 1, True)` and see what it does on your machine.

# %% [markdown]
# One more, for pictures. To draw a manifold of 30 × 30 digits, some recipes call `predict` once for each point.
# `decode` takes all points at once:

# %%
z = np.random.default_rng(0).standard_normal((900, 2)).astype("float32")
begin = time.perf_counter()
one_by_one = [dense.decoder.predict(point[None], verbose=0) for point in z[:90]]  # a tenth takes long enough
middle = time.perf_counter()
together = dense.decode(z)
end = time.perf_counter()
print(f"900 calls: {10 * (middle - begin):.1f} s, one call: {end - middle:.3f} s")
np.testing.assert_allclose(together[:90], ops.sigmoid(np.concatenate(one_by_one)), rtol=1e-4, atol=1e-6)

# %% [markdown]
# ## Measure what the ELBO hides
#
# The ELBO is a lower bound on $\log p_\theta(x)$. How far below? In high dimensions you can only bound that. With two
# latent dimensions you can add up the integral over $z$ on a grid: cells of side $h$, centres $z_k$,
#
# $$ \log p_\theta(x) = \log \int p_\theta(x|z) \, p(z) \, dz \approx \log \sum_k p_\theta(x|z_k) \, p(z_k) \, h^2. \tag{4.6} $$
#
# (For a grey digit, $p_\theta(x|z)$ is chapter 03's score and not a probability. The bound and the sum work all the
# same.) The posterior $p_\theta(z|x)$, the codes that explain an image, is narrow, so the grid must be fine: 400 cells
# along each axis, from −5 to 5. Take the dense model that ships with `vae_utils`: it decodes all these points in
# seconds, and its weights are the same on every machine. Take twelve validation digits. The table `log_joint` holds
# $\log p_\theta(x|z_k) + \log p(z_k)$ for each digit (row) and each cell (column). From logits $a$, the first is
# $\sum_i x_i a_i - \operatorname{softplus}(a_i)$, as in (2.30).

# %%
shipped_dense = vae_utils.load_pretrained("dense-2d")
N, POINTS, LIMIT = 12, (100 if QUICK else 400), 5.0
side = 2 * LIMIT / POINTS
axis = -LIMIT + side * (np.arange(POINTS) + 0.5)
grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype("float32")
few, zero = x_val[:N].reshape(N, 784), np.zeros(2, "float32")


def log_joint_at(z):
    logits = ops.reshape(shipped_dense.decoder(z), (-1, 784))
    return few @ ops.transpose(logits) - ops.sum(ops.softplus(logits), axis=1) + gaussian_log_prob(z, zero, zero)


log_joint = np.concatenate([log_joint_at(z) for z in np.array_split(grid, POINTS)], axis=1)
log_p = logsumexp(log_joint, axis=1, b=side**2)

# %% [markdown]
# Is the grid fine enough? `grid_log_likelihood` in `vae_utils` is what you wrote above. With twice as many cells along
# each axis it must give the same number for every digit.

# %% tags=["eq-4.6"]
finer = evaluation.grid_log_likelihood(shipped_dense, x_val[:N], points=2 * POINTS, limit=LIMIT)
change = np.abs(log_p - finer)
print(f"grid {POINTS}²: {log_p.mean():.4f}, grid {2 * POINTS}²: {finer.mean():.4f} nats per image")
print(f"largest change of a single digit: {change.max():.4f} nats")
if not QUICK:
    assert change.max() < 0.01

# %% [markdown]
# There is a second way to $\log p_\theta(x)$, which works in any dimension: draw many $z$ from $q$ and average the
# weights $p_\theta(x, z) / q_\phi(z|x)$. This is the importance-weighted bound (2.26) of chapter 02. It uses no grid.
# Do the two agree? The error bars come from ten independent runs. The cell prints the three digits with the largest
# shortfall and the two with the smallest.

# %%
num_samples = 200 if QUICK else 5_000
runs = [evaluation.log_likelihood(shipped_dense, x_val[:N], num_samples // 10, seed=seed) for seed in range(10)]
weighted = logsumexp(runs, axis=0) - np.log(10)  # ten runs make one bound with all the samples
error = np.exp(runs - weighted).std(axis=0, ddof=1) / np.sqrt(10)
behind = log_p - weighted
for i in np.argsort(-behind)[[0, 1, 2, -2, -1]]:
    print(f"digit {i:2}: samples fall short of the grid by {behind[i]:6.3f} ± {error[i]:.3f} nats")

# %% [markdown]
# For some digits they do. For others the samples fall short by many times their error bar. One possible reason: $q$
# leaves out a part of the posterior, or all of it. Test it on the grid. Take the ellipse that holds all but 10⁻⁴ of the
# mass of $q$. Of 5,000 draws, one half of a draw is expected outside it. Add up the part of the posterior
# $p_\theta(z|x)$ that lies outside: this is the part that $q$ misses. The error bar is made from the draws, so it can't
# show what they never reached.

# %%
z_mean, z_log_var = (values[:N] for values in shipped_dense.encode(x_val))
distance = sum((grid[:, j] - z_mean[:, [j]]) ** 2 * np.exp(-z_log_var[:, [j]]) for j in range(2))
posterior = np.exp(log_joint - log_p[:, None]) * side**2
missed = np.sum(posterior * (distance > -2 * np.log(1e-4)), axis=1)
for i in np.argsort(-behind)[[0, 1, 2, -2, -1]]:
    print(f"digit {i:2}: q misses {missed[i]:7.2%} of the posterior")

# %% [markdown]
# Draw the shortfall against the missed part. If this is the reason, the digits whose posterior $q$ covers must lie at
# zero.

# %% mystnb={"figure": {"caption": "How far the weighted samples fall short of the grid, against the part of the posterior that q misses. One point per digit, with bars of two standard errors.", "name": "fig-04-missed"}, "image": {"alt": "Twelve points. Nine lie at the left, where q misses less than 8 % of the posterior, close to zero. One lies at 30 % and a little above zero. Two lie at the right edge, where q misses everything, seven and nine nats above zero."}}
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
ax.errorbar(100 * missed, behind, yerr=2 * error, fmt="o", color="#3f90da", markersize=5)
ax.axhline(0, color="gray", linewidth=1)
_ = ax.set(xlabel="part of the posterior that q misses, %", ylabel="grid minus samples, nats")

# %%
reached = missed < 0.01
print(f"{reached.sum()} digits of which q misses less than 1 %")
if reached.any():
    together, spread = behind[reached].mean(), np.sqrt(np.sum(error[reached] ** 2)) / reached.sum()
    print(f"on average the samples fall short by {together:.4f} ± {spread:.4f} nats")
if not QUICK:
    assert abs(together) < 4 * spread + 0.01, "four standard errors, and the 1 % that may be missed"

# %% [markdown]
# So trust the grid, where there is one.
#
# The gap, $\log p_\theta(x) - \text{ELBO}(x)$, is $\text{KL}(q_\phi(z|x) \,\|\, p_\theta(z|x))$, by chapter
# 02. It has two causes:
#
# - **approximation**: $q$ must be a Gaussian with independent coordinates, and the posterior is not. Call the best such
#   Gaussian for this digit $q^*$. Its ELBO still lies below $\log p_\theta(x)$.
# - **amortization**: you don't search $q^*$ for each digit. One encoder, shared by all digits, predicts $q$ in one
#   pass. Sharing the work in this way is called amortization. The prediction is not exactly $q^*$, and that costs ELBO.
#
# $$ \log p_\theta(x) - \text{ELBO}(q) = \underbrace{\log p_\theta(x) - \text{ELBO}(q^*)}_{\text{approximation}}
#    + \underbrace{\text{ELBO}(q^*) - \text{ELBO}(q)}_{\text{amortization}} \tag{4.7} $$
#
# On the grid, the ELBO of any Gaussian is a sum too, with the cells weighted by $q$. So you can look for $q^*$ digit by
# digit with gradient ascent, without any noise. Start at the peak of the posterior, with the encoder's variance.


# %%
@tf.function
def grid_elbo(z_mean, z_log_var, log_joint, grid):
    log_q = gaussian_log_prob(grid[None], z_mean[:, None], z_log_var[:, None])
    return ops.sum(ops.softmax(log_q, axis=1) * (log_joint - log_q), axis=1)  # weights that add up to 1


table = tf.constant(log_joint), tf.constant(grid)  # as arguments; used from outside they'd be copied into the program
amortized = ops.convert_to_numpy(grid_elbo(tf.constant(z_mean), tf.constant(z_log_var), *table))
best_mean, best_log_var = keras.Variable(grid[log_joint.argmax(axis=1)]), keras.Variable(z_log_var)
ASCENT = 20 if QUICK else 80
optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, ASCENT))
for step in range(ASCENT):
    with tf.GradientTape() as tape:
        loss = -ops.sum(grid_elbo(best_mean.value, best_log_var.value, *table))
    optimizer.apply(tape.gradient(loss, [best_mean.value, best_log_var.value]), [best_mean, best_log_var])
    if step % (ASCENT // 5) == 0:
        print(f"step {step:3}: mean ELBO {-float(loss) / N:.3f}")

# %% [markdown]
# Check it by a road that doesn't touch the grid: draw from $q^*$, decode, and subtract the KL in closed form. And no
# ELBO may pass $\log p_\theta(x)$.

# %% tags=["eq-4.7"]
best = ops.convert_to_numpy(grid_elbo(best_mean.value, best_log_var.value, *table))
approximation, amortization = log_p - best, best - amortized

draws = 500
repeat = [np.repeat(ops.convert_to_numpy(value), draws, axis=0) for value in (best_mean, best_log_var)]
z = reparameterize(*repeat, np.random.default_rng(0).standard_normal((N * draws, 2)).astype("float32"))
log_likelihood = bernoulli_log_prob(np.repeat(x_val[:N], draws, axis=0), shipped_dense.decoder(z))
log_likelihood = ops.convert_to_numpy(log_likelihood).reshape(N, draws)
drawn = log_likelihood.mean(axis=1) - ops.convert_to_numpy(gaussian_kl(best_mean, best_log_var))
standard_errors = (best - drawn) / (log_likelihood.std(axis=1, ddof=1) / np.sqrt(draws))

print("grid minus draws, in standard errors:", standard_errors.round(1))
if not QUICK:
    assert np.abs(standard_errors).max() < 4.5, "twelve digits: once in 10,000 runs"
    assert approximation.min() > -0.01 and amortization.min() > -0.01
for name, gap in [("approximation", approximation), ("amortization", amortization)]:
    print(f"{name:<14} {gap.mean():.2f} ± {gap.std() / np.sqrt(N):.2f} nats per image")

# %% [markdown]
# Now digit by digit. The gap is far from the same for all:

# %% mystnb={"figure": {"caption": "The ELBO's gap for twelve validation digits, split into its two parts; digits sorted by the size of the gap. The number under a bar is the class of the digit. The first bar is too low to see.", "name": "fig-04-gaps"}, "image": {"alt": "Twelve stacked bars of approximation and amortization, rising from nearly nothing at the left to 2.5 nats for the tenth and to 11 and 18 for the last two, a 2 and a 4. In the tall bars nearly all is amortization; in one low bar, of a 1, nearly all is approximation."}}
gap = log_p - amortized
order = np.argsort(gap)
figure, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
ax.bar(range(N), approximation[order], color="#3f90da", label="approximation")
ax.bar(range(N), amortization[order], bottom=approximation[order], color="#ffa90e", label="amortization")
ax.set(xlabel="digit, by the size of its gap", ylabel="gap, nats", xticks=range(N), xticklabels=y_val[:N][order])
_ = ax.legend()
# %%
print(f"median gap {np.median(gap):.2f}, mean {gap.mean():.2f}, largest {gap.max():.2f} nats")

# %% [markdown]
# Look at the true posterior, $p_\theta(z|x)$, beside the encoder's ellipse, for the digit with the smallest gap and for
# the one with the largest. The squares are the cells of the grid.

# %% mystnb={"figure": {"caption": "True posterior (shading) and the encoder's q(z|x) (ellipse at two standard deviations, which holds 86 % of it) for the digit with the smallest gap and the one with the largest.", "name": "fig-04-posteriors"}, "image": {"alt": "Two panels, one above the other, each with the shaded posterior of one digit, the red ellipse of q, and the digit itself. Above, where the gap is smallest, the ellipse covers most of the shaded patch. Below, where it is largest, the ellipse lies to the upper left of the patch and nowhere touches it."}}
figure, axes = plt.subplots(2, 1, figsize=(6, 8), layout="constrained")
for ax, i in zip(axes, [gap.argmin(), gap.argmax()], strict=True):
    seen = np.argwhere(posterior[i].reshape(POINTS, POINTS) > posterior[i].max() / 100)
    ax.pcolormesh(axis, axis, posterior[i].reshape(POINTS, POINTS), cmap="Blues", rasterized=True)
    ellipse = z_mean[i] + 2 * np.exp(0.5 * z_log_var[i]) * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    ax.plot(*ellipse.T, color="#bd1f01", label="q(z|x), two σ")
    corners = np.concatenate([ellipse, np.stack([axis[seen[:, 1]], axis[seen[:, 0]]], axis=1)])
    low, high = corners.min(axis=0) - 0.1, corners.max(axis=0) + 0.1
    plotting.plot_digits(x_val[i : i + 1], ax=ax.inset_axes([1.03, 0.72, 0.28, 0.28]))  # outside: it must hide nothing
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="$z_0$", ylabel="$z_1$")
    ax.set_title(f"gap {gap[i]:.2f} nats")
_ = axes[0].legend(loc="upper right")
# %% [markdown]
# Where the gap is smallest, the ellipse covers most of the posterior. Where it is largest, the encoder has put $q$
# beside it, and the ellipse misses the shaded patch altogether. The decoder explains this digit with codes that $q$
# never draws. A Gaussian in the right place would be enough: the approximation gap of this digit is small. On average
# over the twelve, too, most of the gap is amortization, the encoder's guess. But two digits make most of that mean, as
# the bars and its standard error show, and the median gap is far smaller. Twelve digits are few.
#
# ## Use what it has learned
#
# ### Find neighbours
#
# The first of each row is the query, the others are its nearest training digits in the latent space. How often do they
# share its class? Count over all validation digits.

# %% mystnb={"figure": {"caption": "Four validation digits (left) and their nine nearest training digits in the latent space.", "name": "fig-04-neighbours"}, "image": {"alt": "Four rows of ten digits; the first of each row is the query, the other nine are its neighbours."}}
codes, _ = vae.encode(x_train)
rows = []
for query in x_val[:4]:
    distances = np.linalg.norm(codes - vae.encode(query[None])[0], axis=1)
    rows += [query, *x_train[np.argsort(distances)[:9]]]
ax = plotting.plot_digits(np.stack(rows))

# %%
codes_val, _ = vae.encode(x_val)
y_train = digits.y_train[: len(x_train)]
neighbours = NearestNeighbors(n_neighbors=9).fit(codes).kneighbors(codes_val, return_distance=False)
print(f"{np.mean(y_train[neighbours] == y_val[:, None]):.1%} of the nine neighbours share the query's class")

# %% [markdown]
# ### Classify with a hundred labels
#
# The codes were learned without labels. With only a hundred labelled digits, are they a better start than the pixels?
# Draw the hundred twenty times.

# %%
accuracy = {"two codes": [], "784 pixels": []}
for seed in range(20):
    labelled = np.random.default_rng(seed).choice(len(x_train), 100, replace=False)
    for name, train, test in [("two codes", codes, codes_val), ("784 pixels", x_train, x_val)]:
        model = KNeighborsClassifier(3).fit(train[labelled].reshape(100, -1), y_train[labelled])
        accuracy[name].append(model.score(test[:1000].reshape(len(test[:1000]), -1), y_val[:1000]))
for name, values in accuracy.items():
    print(f"{name:<12} {np.mean(values):.1%} ± {np.std(values, ddof=1) / np.sqrt(20):.1%}")

# %% [markdown]
# The two come out alike, within their errors: with so few labels, two numbers per digit serve as well as 784. Chapter
# 03 shows what more latent dimensions keep.
#
# ### Find what doesn't belong
#
# Does a low ELBO tell you that an image is no MNIST digit? Score validation digits, digits from another data set, and
# validation digits with their pixels shuffled. Beside the medians stands how often a strange image has a higher −ELBO
# than a validation digit: one half would be guessing.

# %% mystnb={"figure": {"caption": "$-$ELBO of three kinds of images under the model trained on MNIST.", "name": "fig-04-anomalies"}, "image": {"alt": "Three overlapping histograms of minus ELBO, for validation digits, digits from elsewhere and shuffled pixels."}}
elsewhere = load_optical_digits().x_test
shuffled = np.random.default_rng(0).permuted(x_val[:300].reshape(-1, 784), axis=1).reshape(-1, 28, 28, 1)
kinds = {"validation digits": x_val[:1000], "digits from elsewhere": elsewhere, "shuffled pixels": shuffled}
losses = {name: -evaluation.elbo(vae, images) for name, images in kinds.items()}
edges = np.linspace(0, max(map(np.max, losses.values())), 121)
figure, ax = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for (name, loss), color in zip(losses.items(), ["#3f90da", "#ffa90e", "#bd1f01"], strict=True):
    ax.hist(loss, edges, density=True, alpha=0.6, label=name, color=color)
    familiar = loss if name == "validation digits" else familiar
    print(f"{name:<22} median {np.median(loss):6.1f} nats, higher in {np.mean(loss[:, None] > familiar):.1%} of pairs")
ax.set(xlabel="−ELBO, nats per image", ylabel="density", yticks=[])
_ = ax.legend()
# %% [markdown]
# A likelihood measures how many nats an image takes, and ink takes nats whoever wrote it. That is not the same as how
# familiar the image is, so it is an alarm with gaps.

# %% [markdown]
# ## In this notebook
#
# - A strided convolution is a matrix that takes 16 pixels to 4 numbers; the transposed convolution multiplies by its
#   transpose.
# - The convolutional VAE has 69,076 + 65,089 = 134,165 parameters, counted by hand and by Keras.
# - `compute_loss` and a hand-written `train_step` take the same step; the first keeps `evaluate`, `predict` and `save`.
# - The two terms of the loss pull against each other, and held-out digits show where they balance.
# - To average the KL over two latent dimensions is to train with $\beta = 1/2$.
# - Larger batches and more steps per call make epochs shorter. How much, your own machine decides.
# - With two latent dimensions you can compute $\log p_\theta(x)$ on a grid, and so the gap that the ELBO hides. (Below,
#   it is that of the shipped dense model.)
# - The codes serve for more than drawing: neighbours, classes from a hundred labels, and, with care, an alarm.

# %%
summary = {
    "floor": floor,
    "test −ELBO, conv": -elbo_test.mean(),
    "test −ELBO, dense": -dense_test.mean(),
    "gap to −log p(x)": gap.mean(),
    "of it amortization": amortization.mean(),
}
for name, value in summary.items():
    print(f"{name:<20} {value:7.2f} nats per image")

# %% [markdown]
# ## Exercises
#
# Write your answer in the first cell; the second one checks it.
#
# **1. Count parameters.** How many parameters has a convolution with a $k \times k$ kernel, `c_in` input channels and
# `c_out` output channels?


# %% tags=["exercise"]
def count_parameters(k, c_in, c_out): ...  # your code here


# %% tags=["exercise-check"]
def check_1(answer):
    for k, c_in, c_out in [(3, 1, 32), (5, 3, 8), (1, 7, 2)]:
        layer = layers.Conv2D(c_out, k)
        layer.build((None, 28, 28, c_in))
        right = layer.count_params()
        assert answer(k, c_in, c_out) == right, f"for {(k, c_in, c_out)} Keras counts {right}"
    print("Exercise 1: right.")


check_1(count_parameters) if count_parameters(3, 1, 32) is not None else print("Exercise 1: your turn.")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def count_parameters(k, c_in, c_out):
#     return (k * k * c_in + 1) * c_out
# ```
#
# Each output channel has one weight for every place and channel of its window, and one bias.
#
# </details>
#
# **2. Put the loss together.** You get `reconstruction`, of shape `(batch,)`, and `kl`, of shape `(batch, latent_dim)`,
# one value per latent dimension. Return the loss of the batch in nats per image, with the KL weighted by `beta`.


# %% tags=["exercise"]
def batch_loss(reconstruction, kl, beta): ...  # your code here


# %% tags=["exercise-check"]
def check_2(answer):
    reconstruction = np.array([100.0, 140.0, 150.0])
    kl = np.array([[1.0, 2, 3, 4], [0, 0, 0, 6], [5, 5, 5, 5]])
    assert answer(reconstruction, kl, 1.0) is not None, "return a number"
    assert np.isclose(answer(reconstruction, kl, 1.0), 142), "the images have KLs of 10, 6 and 20 nats: 130 + 12"
    assert np.isclose(answer(reconstruction, kl, 0.5), 136), "β weighs the KL: 130 + 12 / 2"
    print("Exercise 2: right.")


check_2(batch_loss) if batch_loss(np.ones(1), np.ones((1, 1)), 1) is not None else print("Exercise 2: your turn.")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def batch_loss(reconstruction, kl, beta):
#     return np.mean(reconstruction + beta * kl.sum(axis=1))
# ```
#
# Sum over latent dimensions, average over images. Averaging both would divide the KL by 4 here.
#
# </details>
#
# **3. Find a corner.** Return the image in the *upper left* corner of the manifold over $[-2, 2]^2$, shape `(28, 28,
# 1)`.


# %% tags=["exercise"]
def upper_left(vae): ...  # your code here


# %% tags=["exercise-check"]
def check_3(answer):
    image = answer(vae)
    assert np.shape(image) == (28, 28, 1), f"one image of shape (28, 28, 1), not {np.shape(image)}"
    shown = plotting.plot_manifold(vae, n=3, limit=2).images[0].get_array()[:28, :28]
    plt.close()
    assert np.allclose(image[..., 0], shown, atol=1e-3), "z₀ runs to the right and z₁ up"
    print("Exercise 3: right.")


check_3(upper_left) if upper_left(vae) is not None else print("Exercise 3: your turn.")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def upper_left(vae):
#     return vae.decode([[-2.0, 2.0]])[0]
# ```
#
# Left is a small $z_0$, up is a large $z_1$.
#
# </details>
#
# **4. Walk from digit to digit.** Return `steps` images on the straight line, in the *latent* space, from image `a` to
# image `b`, both included. Start and end at the digits' `z_mean`.


# %% tags=["exercise"]
def walk(vae, a, b, steps): ...  # your code here


# %% tags=["exercise-check"]
def check_4(answer):
    images = answer(vae, x_val[0], x_val[1], 4)
    assert np.shape(images) == (4, 28, 28, 1), f"shape (4, 28, 28, 1), not {np.shape(images)}"
    ends = vae.predict(x_val[:2], verbose=0)
    assert np.allclose(images[[0, -1]], ends, atol=1e-3), "the walk starts and ends at the reconstructions"
    a, b = vae.encode(x_val[:2])[0]
    third = vae.decode([2 / 3 * a + 1 / 3 * b])[0]
    assert np.allclose(images[1], third, atol=1e-3), "the second of four images lies a third of the way"
    print("Exercise 4: right.")


check_4(walk) if walk(vae, x_val[0], x_val[1], 4) is not None else print("Exercise 4: your turn.")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def walk(vae, a, b, steps):
#     start, end = vae.encode(np.stack([a, b]))[0]
#     t = np.linspace(0, 1, steps)[:, None]
#     return vae.decode((1 - t) * start + t * end)
# ```
#
# </details>
#
# **5. Change the unit.** A loss in nats per image depends on the size of the image. Convert it to bits per pixel for
# images of 784 pixels.


# %% tags=["exercise"]
def bits_per_pixel(nats_per_image): ...  # your code here


# %% tags=["exercise-check"]
def check_5(answer):
    assert answer(784 * np.log(2)) is not None, "return a number"
    assert np.isclose(answer(784 * np.log(2)), 1), "784 fair coins are one bit per pixel"
    assert np.isclose(answer(0), 0), "no nats, no bits"
    print("Exercise 5: right.")


check_5(bits_per_pixel) if bits_per_pixel(1.0) is not None else print("Exercise 5: your turn.")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def bits_per_pixel(nats_per_image):
#     return nats_per_image / np.log(2) / 784
# ```
#
# A bit is $\log 2 \approx 0.693$ nats.
#
# </details>
#
# ## Further reading
#
# - D. P. Kingma and M. Welling, [Auto-Encoding Variational Bayes](https://arxiv.org/abs/1312.6114) (2014): the VAE.
# - F. Chollet, [Variational AutoEncoder](https://keras.io/examples/generative/vae/) (2020): this architecture, with a
#   hand-written `train_step`.
# - V. Dumoulin and F. Visin, [A guide to convolution arithmetic for deep learning](https://arxiv.org/abs/1603.07285)
#   (2016): strides, padding, transposes, in pictures.
# - A. Odena, V. Dumoulin and C. Olah, [Deconvolution and checkerboard artifacts](https://distill.pub/2016/deconv-checkerboard/)
#   (2016).
# - C. Cremer, X. Li and D. Duvenaud, [Inference suboptimality in variational autoencoders](https://arxiv.org/abs/1801.03558)
#   (2018): the gap, split as above.
# - E. Nalisnick et al., [Do deep generative models know what they don't know?](https://arxiv.org/abs/1810.09136) (2019):
#   why a likelihood is a poor alarm.

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
# # Learn to differentiate through randomness
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/every-equation-executed/vae/blob/main/notebooks/01_reparameterization_trick.ipynb)
#
# **What you'll do:** send a gradient through a random draw, and measure how noisy that gradient is.
#
# **What you'll learn:**
#
# - see why a sampler gives no gradient, and move its noise outside so that it does;
# - choose what the network outputs, so that float32 neither overflows nor underflows;
# - test that a sampler draws from the distribution you meant;
# - derive and measure the variance of two gradient estimators, and know when each one wins;
# - write the `Sampling` layer of every later chapter, and repeat its noise on demand;
# - draw many samples per example with an explicit noise input.
#
# **What you'll need:** Python, basic Keras, and first-year probability (mean, variance, the normal density).
# No data, no network, no GPU.
#
# **Time:** about 40 minutes to read, about RUNTIME seconds to run on two CPU cores.

# %%
import sys

if "google.colab" in sys.modules:
    get_ipython().run_line_magic("pip", "install -q --no-deps git+https://github.com/every-equation-executed/vae@main")

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers
from scipy import integrate, stats

import vae_utils

# %% [markdown]
# Two settings for the whole notebook. `REPEATS` says how often we repeat each experiment. With the environment variable
# `VAE_UTILS_QUICK=1` there are ten times fewer repeats: the pictures get rougher, and every check still has to pass.

# %%
REPEATS = 20_000 if vae_utils.QUICK else 200_000
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## See that a sample has no gradient
#
# A variational autoencoder draws a random point $z$ in the middle of the network, from a normal distribution whose mean
# $\mu$ and standard deviation $\sigma$ are computed by the layers before it. Training needs the gradient of the loss with respect to
# those layers' weights. So the gradient has to get past the draw.
#
# Look for the word `None` below. We draw $z$ with NumPy's normal sampler, square it, and ask TensorFlow for the derivative
# with respect to $\mu$ and $\sigma$.


# %%
def numpy_sampler(mu, sigma):
    rng = np.random.default_rng(0)
    return np.float32(rng.normal(mu, sigma))


# %% tags=["nbval-check-output"]
mu, sigma = tf.Variable(0.5), tf.Variable(2.0)
with tf.GradientTape() as tape:
    z = tf.numpy_function(numpy_sampler, [mu, sigma], tf.float32)
    objective = z**2
print(tape.gradient(objective, [mu, sigma]))

# %% [markdown]
# `None` is TensorFlow's way to say: I know of no path from this number back to that variable. The draw came out of a box
# that TensorFlow can't see into. It isn't about NumPy: samplers inside TensorFlow answer the same. Here is a coin flip and a Poisson count.

# %% tags=["nbval-check-output"]
with tf.GradientTape(persistent=True) as tape:
    coin = tf.random.categorical([[0.0, mu]], num_samples=1)
    count = tf.random.stateless_poisson([], seed=[1, 2], lam=sigma)
print("coin:   ", tape.gradient(coin, mu))
print("Poisson:", tape.gradient(count, sigma))

# %% [markdown]
# Could you avoid the box and measure the derivative by hand? Nudge $\mu$ by a small $h$, draw again, and divide the change of $z$ by $h$.
# Look at the spread of that quotient as $h$ shrinks.

# %%
rng = np.random.default_rng(1)
for h in (0.1, 0.01, 0.001):
    nudged, original = rng.normal(0.5 + h, 2.0, 10_000), rng.normal(0.5, 2.0, 10_000)
    quotient = (nudged - original) / h
    print(f"h = {h:5}: first three {np.round(quotient[:3], 1)}, spread {quotient.std():7.1f}")

# %% [markdown]
# There is no limit. Each time $h$ gets ten times smaller, the spread gets ten times larger. The two draws differ by their own
# luck, and that luck is divided by $h$. Now the same with one change: both draws start from the same seed, so both have the same luck.

# %% tags=["nbval-check-output"]
for h in (0.1, 0.01, 0.001):
    nudged = np.random.default_rng(1).normal(0.5 + h, 2.0, 10_000)
    original = np.random.default_rng(1).normal(0.5, 2.0, 10_000)
    quotient = (nudged - original) / h
    print(f"h = {h:5}: mean {quotient.mean():.4f}, spread {quotient.std():.4f}")

# %% [markdown]
# The quotient is now 1 for every draw and every $h$. With the luck held fixed, $z$ is an ordinary function of $\mu$, and its
# derivative is 1. That is the whole idea of this chapter: **hold the luck fixed while you differentiate**.
#
# ## Move the noise outside
#
# Call the luck $\varepsilon$ (`epsilon` in code). Draw it from the standard normal distribution, which has no parameters. Then shift and stretch it:
#
# $$z = \mu + \sigma \odot \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I) \tag{1.1}$$
#
# The sign $\odot$ multiplies coordinate by coordinate. This is the **reparameterization trick**. Nothing about the distribution
# of $z$ has changed. To check that without drawing anything, use quantiles: the value that $z$ stays under with probability $p$
# must be $\mu + \sigma$ times the value that $\varepsilon$ stays under with probability $p$. SciPy knows the quantiles of both normal distributions.

# %% tags=["eq-1.1"]
p = np.array([0.001, 0.1, 0.5, 0.9, 0.999])
epsilon_quantiles = stats.norm.ppf(p)
z_quantiles = stats.norm(loc=0.5, scale=2.0).ppf(p)
assert np.allclose(0.5 + 2.0 * epsilon_quantiles, z_quantiles, atol=1e-12)
print(np.round(z_quantiles, 3))

# %% [markdown]
# With $\varepsilon$ held fixed, equation (1.1) is a straight line in $\mu$ and in $\sigma$. A derivative of a line is its slope, so
#
# $$\frac{\partial z_j}{\partial \mu_j} = 1, \qquad \frac{\partial z_j}{\partial \sigma_j} = \varepsilon_j \tag{1.2}$$
#
# Ask the tape whether it agrees. The numbers that were `None` should now be 1 and $\varepsilon$.

# %% tags=["eq-1.2"]
epsilon = tf.constant(-0.7)
with tf.GradientTape() as tape:
    z = mu + sigma * epsilon
slopes = tape.gradient(z, [mu, sigma])
print([round(float(slope), 6) for slope in slopes])
assert np.allclose(slopes, [1.0, -0.7])

# %% [markdown]
# They are. A picture of what has changed helps. The next cell holds two small drawing helpers, and the one after it draws both
# graphs: solid arrows compute $z$, dashed arrows carry the gradient back.


# %%
def node(ax, x, y, text, color, style="round"):
    box = {"boxstyle": f"{style},pad=0.35", "facecolor": "white", "edgecolor": color, "linewidth": 2}
    ax.text(x, y, text, ha="center", va="center", bbox=box, zorder=3)


def arrow(ax, start, end, color="black", style="-", bend=0.0):
    line = {"arrowstyle": "-|>", "color": color, "linestyle": style, "shrinkA": 17, "shrinkB": 17}
    line |= {"linewidth": 1.6, "mutation_scale": 16, "connectionstyle": f"arc3,rad={bend}"}
    ax.annotate("", end, start, arrowprops=line, zorder=2)


# %% mystnb={"figure": {"caption": "The trick. Above: the noise is drawn inside the node that makes z, and no gradient gets past it. Below: the noise is an input, and the gradient has a path of multiplications and additions.", "name": "fig-01-trick"}, "image": {"alt": "Two computation graphs. In the upper one mu and sigma enter a random node that gives z and then the loss; the gradient stops at the random node. In the lower one epsilon enters from outside, is multiplied by sigma and added to mu to give z; the gradient flows back to mu and sigma."}}
fig, axes = plt.subplots(2, 1, figsize=(6.5, 6))
for ax, title in zip(axes, ["noise inside: the gradient stops", "noise outside: the gradient gets through"]):
    ax.set(xlim=(-0.4, 6.4), ylim=(-0.5, 2.6), title=title)
    ax.axis("off")
    node(ax, 0, 2, "$\\mu$", BLUE)
    node(ax, 0, 1, "$\\sigma$", BLUE)
    node(ax, 6, 1.5, "$f(z)$", GREY)
    node(ax, 4.6, 1.5, "$z$", GREY)
    arrow(ax, (4.6, 1.5), (6, 1.5))
    arrow(ax, (6, 1.5), (4.6, 1.5), RED, "--", bend=0.5)
top, low = axes
node(top, 2.6, 1.5, "draw from\n$\\mathcal{N}(\\mu, \\sigma^2)$", RED, "round4")
for start, end in [((0, 2), (2.2, 1.7)), ((0, 1), (2.2, 1.3)), ((2.9, 1.5), (4.6, 1.5))]:
    arrow(top, start, end)
arrow(top, (4.6, 1.5), (3.0, 1.5), RED, "--", bend=0.5)
top.text(3.75, 2.25, "None", color=RED, ha="center", weight="bold")
node(low, 0, 0, "$\\varepsilon$", ORANGE, "round4")
node(low, 1.7, 0.5, "×", GREY, "circle")
node(low, 3.1, 1.5, "+", GREY, "circle")
for start, end in [((0, 1), (1.7, 0.5)), ((0, 0), (1.7, 0.5)), ((1.7, 0.5), (3.1, 1.5)), ((0, 2), (3.1, 1.5)), ((3.1, 1.5), (4.6, 1.5))]:
    arrow(low, start, end)
for start, end in [((4.6, 1.5), (3.1, 1.5)), ((3.1, 1.5), (0, 2)), ((3.1, 1.5), (1.7, 0.5)), ((1.7, 0.5), (0, 1))]:
    arrow(low, start, end, RED, "--", bend=0.35)
low.text(0.45, 0, "drawn from $\\mathcal{N}(0, 1)$", va="center", ha="left", color=GREY)
fig.tight_layout();

# %% [markdown]
# In the lower graph every node on the way from $z$ back to $\mu$ and $\sigma$ is a product or a sum. The only random node is
# $\varepsilon$, and nobody needs its gradient.
#
# One surprise before we go on. Look at what TensorFlow's own *normal* sampler does, the one we avoided above.

# %% tags=["nbval-check-output"]
with tf.GradientTape() as tape:
    z = tf.random.stateless_normal([], seed=[1, 2], mean=mu, stddev=sigma)
noise = tf.random.stateless_normal([], seed=[1, 2])
print("slopes: ", [f"{float(slope):.4f}" for slope in tape.gradient(z, [mu, sigma])])
print("epsilon:", f"{noise:.4f}")

# %% [markdown]
# It doesn't answer `None`. The slopes are 1 and $\varepsilon$, as in equation (1.2): `tf.random.normal` draws
# standard normal noise and computes `mean + stddev * noise` in TensorFlow operations. The trick is already inside. We still write it
# out, because we want to choose the noise ourselves, reuse it, and give the network's output a safe form. That form is next.
#
# ## Let the network give log σ²
#
# A network's output can be any real number, but $\sigma$ has to be positive. The usual choice is to read the output as $\log\sigma^2$, named `z_log_var`, and to compute
#
# $$\sigma = \exp\left(\tfrac12 \log\sigma^2\right) \tag{1.3}$$
#
# The reason: $\frac12\log\sigma^2 = \log\sqrt{\sigma^2} = \log\sigma$, and $\exp$ undoes $\log$. Check it against the square root, in float64 and over 18 powers of ten.

# %% tags=["eq-1.3"]
variance = 10.0 ** np.arange(-12, 7)
standard_deviation = np.exp(0.5 * np.log(variance))
assert np.allclose(standard_deviation, np.sqrt(variance), rtol=1e-13, atol=0)

# %% [markdown]
# Why half the logarithm inside the exponential, and why not one of the alternatives that look as good on paper? Here are five
# ways to turn a raw output $r$ into $\sigma$. Look for `nan`, `inf`, a zero, or a negative number in float32.

# %% tags=["nbval-check-output"]
ways = {
    "r itself": lambda r: r,
    "sqrt(r)": tf.sqrt,
    "log(1 + exp(r))": lambda r: tf.math.log(1.0 + tf.exp(r)),
    "sqrt(exp(r))": lambda r: tf.sqrt(tf.exp(r)),
    "exp(r / 2)": lambda r: tf.exp(r / 2.0),
}
r = tf.constant([-120.0, -60.0, -1.0, 0.0, 1.0, 60.0, 120.0])
print(f"{'r':>16}", *(f"{float(value):9.0f}" for value in r))
for name, way in ways.items():
    print(f"{name:>16}", *(f"{float(value):9.1e}" for value in way(r)))

# %% [markdown]
# Only the last row is positive and finite everywhere.
#
# - `r itself` is negative for half of all outputs, and zero at 0.
# - `sqrt(r)`, which reads the output as $\sigma^2$, is `nan` for every negative output. A fresh network gives those at once.
# - `log(1 + exp(r))`, typed as on paper, is 0 from −60 on down and `inf` at 120. (Keras' own `softplus` avoids the `inf`.)
# - `sqrt(exp(r))` equals `exp(r / 2)` on paper. In float32 `exp(120)` is already `inf`, and `exp(-120)` is already 0, before the square root is taken.
#
# What about the gradient? That is where training breaks first.

# %% tags=["nbval-check-output"]
print(f"{'r':>16}", *(f"{float(value):9.0f}" for value in r))
for name, way in ways.items():
    with tf.GradientTape() as tape:
        tape.watch(r)
        sigmas = way(r)
    print(f"{name:>16}", *(f"{float(value):9.1e}" for value in tape.gradient(sigmas, r)))

# %% [markdown]
# At $r=-120$ and $r=120$, `sqrt(exp(r))` has the gradient `nan`: the chain rule multiplies 0 by infinity.
# A single `nan` in a gradient turns every weight it reaches into `nan`, and the model doesn't recover. `exp(r / 2)` stays finite here. Where does it break?

# %% mystnb={"figure": {"caption": "σ in float32, computed in two ways that agree on paper. The exponential of half the log-variance covers twice the range.", "name": "fig-01-float32"}, "image": {"alt": "Standard deviation on a logarithmic axis against log variance from minus 200 to 200. The line for sqrt of exp ends near minus 88 and 88; the line for exp of half ends near minus 175 and 177."}}
grid = tf.cast(tf.linspace(-200.0, 200.0, 2001), tf.float32)
fig, ax = plt.subplots(figsize=(6.5, 3.8))
for name, color, width in [("sqrt(exp(r))", ORANGE, 9), ("exp(r / 2)", BLUE, 2.5)]:
    sigmas = ways[name](grid).numpy()
    works = (sigmas > 1e-38) & np.isfinite(sigmas)
    ends = grid.numpy()[works][[0, -1]]
    ax.plot(grid[works], sigmas[works], color=color, lw=width, label=f"{name}: {ends[0]:.0f} to {ends[1]:.0f}")
    ax.plot(ends, sigmas[works][[0, -1]], "o", color=color, markersize=width + 3)
    print(f"{name:>12} is positive and finite from {ends[0]:.1f} to {ends[1]:.1f}")
ax.set(yscale="log", xlabel="network output r = log σ²", ylabel="σ in float32 (log scale)", xlim=(-200, 200))
ax.legend(loc="upper left", frameon=False);

# %% [markdown]
# The dots mark where each way stops giving a positive, finite number. `exp(r / 2)` covers twice the range, because its argument is half as
# large. It has ends too, so it isn't magic. And the loss of a VAE also holds $\sigma^2$ itself, whose exponential overflows where the orange line ends.
# No sensible posterior goes there: at $\log\sigma^2 = -87$ the standard deviation is about $10^{-19}$.
#
# There is one more reason for $\log\sigma^2$. The loss needs $\log\sigma^2$ (chapter 02). If the network outputs it, nobody has to take a logarithm of
# a number that may have become 0. Here is that round trip.

# %% tags=["nbval-check-output"]
raw = tf.constant([-120.0, -60.0, 0.0, 60.0, 120.0])
print("network gives log σ²: ", raw.numpy())
print("log(exp(log σ²)):     ", tf.math.log(tf.exp(raw)).numpy())

# %% [markdown]
# An output of −120 comes back as minus infinity, and 120 as plus infinity. So we keep `z_log_var` and compute $\sigma$ from it, once, where we sample.
#
# The derivative with respect to the new parameter follows from the chain rule. By (1.2), $\partial z/\partial\sigma = \varepsilon$. By (1.3),
# $\partial\sigma/\partial\log\sigma^2 = \frac12\sigma$, because the derivative of $\exp(\frac12 a)$ is half of itself. Multiply the two:
#
# $$\frac{\partial z_j}{\partial \log\sigma_j^2} = \tfrac12\, \sigma_j\, \varepsilon_j \tag{1.4}$$
#
# The check nudges $\log\sigma^2$ up and down by $10^{-6}$ in float64 with $\varepsilon$ held fixed, and never uses the formula's derivation.


# %% tags=["eq-1.4"]
def z_of(z_log_var, epsilon, z_mean=0.5):
    return z_mean + np.exp(0.5 * z_log_var) * epsilon


eps, h = np.array([-1.5, 0.2, 2.0]), 1e-6
for a in (-3.0, 0.0, 2.0):
    slope = (z_of(a + h, eps) - z_of(a - h, eps)) / (2 * h)
    assert np.allclose(slope, 0.5 * np.sqrt(np.exp(a)) * eps, atol=1e-8)

# %% [markdown]
# ## Check that it draws from the right distribution
#
# Now write the trick as a function of explicit noise. It is three lines. We'll use it on two latent dimensions with means 1 and −2 and standard deviations 0.5 and 3.


# %%
def reparameterize(z_mean, z_log_var, epsilon):
    """Turn standard normal noise into a sample of N(z_mean, exp(z_log_var))."""
    z_sigma = tf.exp(0.5 * z_log_var)
    return z_mean + z_sigma * epsilon


# %%
target_mean, target_sigma = np.array([1.0, -2.0]), np.array([0.5, 3.0])
epsilon = np.random.default_rng(2).standard_normal((REPEATS, 2))
samples = reparameterize(target_mean, np.log(target_sigma**2), epsilon).numpy()
print(samples.shape)

# %% [markdown]
# How close should the sample's moments come? A mean of $n$ independent draws has the standard error $\sigma/\sqrt n$. A variance estimated
# from $n$ normal draws has the standard error $\sigma^2\sqrt{2/n}$. A correlation that is truly 0 has about $1/\sqrt n$. We divide each deviation by its standard
# error and call the result $z$-score. Our level, here and everywhere below: $|z\text{-score}| < 4$. A correct sampler
# exceeds that once in about 16,000 checks.

# %%
n, level = len(samples), 4.0
mean_scores = (samples.mean(axis=0) - target_mean) / (target_sigma / np.sqrt(n))
variance_scores = (samples.var(axis=0) / target_sigma**2 - 1) / np.sqrt(2 / n)
correlation_score = np.corrcoef(samples.T)[0, 1] * np.sqrt(n)
scores = np.r_[mean_scores, variance_scores, correlation_score]
print("means", samples.mean(axis=0).round(3), " standard deviations", samples.std(axis=0).round(3))
print("z-scores of 2 means, 2 variances, 1 correlation:", scores.round(2))
print(f"a correct sampler exceeds {level:.0f} once in {1 / (2 * stats.norm.sf(level)):,.0f} checks")
assert np.all(np.abs(scores) < level)

# %% [markdown]
# Moments can agree while the shape is wrong. Look at the shape: bars are the samples, lines the density they should have.

# %% mystnb={"figure": {"caption": "Histograms of reparameterized samples against the normal densities they should follow.", "name": "fig-01-histogram"}, "image": {"alt": "Two histograms, one narrow around 1 and one wide around minus 2. In both the bars follow the drawn normal density."}}
fig, axes = plt.subplots(1, 2, figsize=(7, 3.3))
for j, ax in enumerate(axes):
    density = stats.norm(target_mean[j], target_sigma[j])
    line = np.linspace(*density.ppf([1e-4, 1 - 1e-4]), 200)
    ax.hist(samples[:, j], bins=60, range=(line[0], line[-1]), density=True, color=ORANGE, alpha=0.6, label="samples")
    ax.plot(line, density.pdf(line), color=BLUE, lw=2, label="density")
    ax.set(xlabel=f"$z_{j + 1}$", title=f"μ = {target_mean[j]:.0f}, σ = {target_sigma[j]}")
axes[0].set_ylabel("probability density")
axes[1].legend(frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=(0.62, 1.0))
fig.tight_layout();

# %% [markdown]
# They lie on each other. To put a level on "lie on each other", use the Kolmogorov–Smirnov test. It takes the largest gap between
# the samples' cumulative distribution and the true one, and returns a p-value: the probability that a correct sampler shows a gap at least this large. We reject below $10^{-4}$.
#
# A test that never fails is worth nothing. So we also give it a sampler with a common bug: the factor ½ is missing, and $\sigma$ is computed as $\exp(\log\sigma^2)$.

# %%
buggy = target_mean + np.exp(np.log(target_sigma**2)) * epsilon
for j in range(2):
    truth = stats.norm(target_mean[j], target_sigma[j]).cdf
    good_p, buggy_p = (stats.kstest(draws[:, j], truth).pvalue for draws in (samples, buggy))
    print(f"z_{j + 1}: p-value {good_p:.3f}, with the bug {buggy_p:.1e}")
    assert good_p > 1e-4 > buggy_p

# %% [markdown]
# The right sampler passes, the bug is rejected in both dimensions. Note that the bug would pass unnoticed at $\sigma = 1$, where $\exp(\frac12\cdot 0) = \exp(0)$:
# test a sampler away from the standard normal.
#
# ## Write the Sampling layer
#
# In a model, the noise comes from a layer. It is called on `[z_mean, z_log_var]`, draws one $\varepsilon$ for each entry of `z_mean`, and returns $z$.
# A `SeedGenerator` holds the state of the random numbers, so that each call gets new ones.


# %%
class Sampling(layers.Layer):
    """Draw z from N(z_mean, exp(z_log_var)), with fresh noise for every example."""

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs):
        z_mean, z_log_var = inputs
        epsilon = keras.random.normal(keras.ops.shape(z_mean), seed=self.seed_generator)
        return z_mean + keras.ops.exp(0.5 * z_log_var) * epsilon

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


# %% [markdown]
# The module that goes with this series has the same layer, with checks of its input added. Compare the two: the same seed must give the same numbers,
# at the first call and at the second. The same holds for `reparameterize`.

# %%
batch = [tf.constant([[0.0, 1.0], [2.0, 3.0]]), tf.constant([[0.0, -1.0], [1.0, -4.0]])]
ours, theirs = Sampling(seed=7), vae_utils.layers.Sampling(seed=7)
for _call in range(2):
    assert np.array_equal(ours(batch), theirs(batch))
noise = np.float32([[0.3, -1.2], [0.0, 2.0]])
assert np.allclose(reparameterize(*batch, noise), vae_utils.layers.reparameterize(*batch, noise), rtol=1e-6)

# %% [markdown]
# They agree. From here on we import both.

# %%
from vae_utils.layers import Sampling, reparameterize

# %% [markdown]
# ## Get the same noise twice
#
# Three questions come up whenever a run must be repeated. First: how do you repeat a whole program? `keras.utils.set_random_seed`
# resets Python's, NumPy's and the backend's generators.

# %%
keras.utils.set_random_seed(3)
first = Sampling()(batch)
keras.utils.set_random_seed(3)
second = Sampling()(batch)
assert np.array_equal(first, second)

# %% [markdown]
# Second: how do you repeat one draw? Pass a seed. Here is a trap. An *integer* seed gives the same noise at **every** call,
# a `SeedGenerator` gives new noise at every call. Look at the two rows of each pair.

# %%
generator = keras.random.SeedGenerator(7)
for name, seed in [("integer", 7), ("SeedGenerator", generator)]:
    for _call in range(2):
        print(f"{name:>14}", keras.random.normal((4,), seed=seed).numpy().round(3))

# %%
fixed = [keras.random.normal((4,), seed=7) for _call in range(2)]
moving = [keras.random.normal((4,), seed=generator) for _call in range(2)]
assert np.array_equal(*fixed)
assert not np.array_equal(*moving)

# %% [markdown]
# A layer that passes an integer to `keras.random.normal` would train on one frozen $\varepsilon$ forever. That is why `Sampling` keeps a `SeedGenerator`.
#
# Third: which noise did the layer use? Build a second generator from the same seed, and draw the same shape. Then $z$ from the layer
# and $z$ from `reparameterize` agree number for number.

# %%
layer = Sampling(seed=7)
generator = keras.random.SeedGenerator(7)
for _call in range(3):
    epsilon = keras.random.normal(batch[0].shape, seed=generator)
    assert np.array_equal(layer(batch), reparameterize(*batch, epsilon))

# %% [markdown]
# > **Note.** The same seed gives the same noise on the same backend and the same versions. TensorFlow, JAX and PyTorch each turn a seed into
# > different numbers. To carry noise between them, save the array.
#
# ## Move the gradient inside the expectation
#
# Now to the reason for all this. Training minimizes an expectation, $\mathbb E[f(z)]$, where the distribution of $z$ depends on $\mu$ and $\sigma$. Write $q(z)$ for that distribution.
# Since $z$ in (1.1) has the distribution $q$, averaging $f$ over $z$ is the same as averaging $f(\mu+\sigma\varepsilon)$ over $\varepsilon$:
#
# $$\mathbb E_{z\sim q}[f(z)] = \mathbb E_{\varepsilon\sim\mathcal N(0,1)}[f(\mu + \sigma\varepsilon)] \tag{1.5}$$
#
# To check it we need two different integrals. The left side: integrate $f(z)\,q(z)$ with SciPy. The right side: Gauss–Hermite quadrature, a weighted sum over fixed values of $\varepsilon$,
# which is exact for polynomials of degree up to 79 with 40 points. We'll use `expect` often.

# %%
points, weights = np.polynomial.hermite_e.hermegauss(40)


def expect(g):
    """The mean of g(epsilon) for epsilon ~ N(0, 1), by quadrature."""
    return np.sum(weights * g(points)) / np.sqrt(2 * np.pi)


# %% tags=["eq-1.5"]
for f in (np.square, np.tanh, np.cos):
    left, _error = integrate.quad(lambda z: f(z) * stats.norm.pdf(z, 0.5, 1.5), -20, 20)
    right = expect(lambda epsilon: f(0.5 + 1.5 * epsilon))
    print(f"{f.__name__:>6}: {left:.6f} {right:.6f}")
    assert abs(left - right) < 1e-4

# %% [markdown]
# (The tolerance is $10^{-4}$ for the sake of $\tanh$, which is no polynomial.) Look at the right side of (1.5) again. The average is over $\varepsilon$, whose distribution has no parameters. So the
# derivative with respect to $\mu$ only meets $f$, and may go inside the average, as long as $f$ is smooth. By the chain rule and (1.2):
#
# $$\frac{\partial}{\partial\mu}\,\mathbb E_{z\sim q}[f(z)] = \mathbb E_{\varepsilon}\left[f'(\mu+\sigma\varepsilon)\right] \tag{1.6}$$
#
# The quantity inside the brackets is the **pathwise gradient**: draw one $\varepsilon$, differentiate along the path it gives. The check takes
# the slope of the left side by a finite difference of SciPy's integral.

# %% tags=["eq-1.6"]
for f, f_prime in [(np.square, lambda z: 2 * z), (np.cos, lambda z: -np.sin(z))]:
    mean_f = [integrate.quad(lambda z: f(z) * stats.norm.pdf(z, m, 1.5), -20, 20, epsabs=1e-12)[0] for m in (0.499, 0.501)]
    slope = (mean_f[1] - mean_f[0]) / 0.002
    inside = expect(lambda epsilon: f_prime(0.5 + 1.5 * epsilon))
    print(f"{f.__name__:>6}: slope of the expectation {slope:.5f}, expectation of the slope {inside:.5f}")
    assert abs(slope - inside) < 1e-5

# %% [markdown]
# ### Choose a test case with a known answer
#
# To compare estimators we need an expectation whose gradient is known exactly. Take $f(z) = \|z\|^2 = z_1^2 + \dots + z_d^2$ in $d$ dimensions. For each
# coordinate $\mathbb E[z_j^2]$ is the mean squared plus the variance, which is the definition of the variance turned around. So
#
# $$\mathbb E\left[\|z\|^2\right] = \sum_{j=1}^{d} \left(\mu_j^2 + \sigma_j^2\right) \tag{1.7}$$
#
# Check it in three dimensions with quadrature.

# %% tags=["eq-1.7"]
means, sigmas = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.3, 2.5])
by_quadrature = sum(expect(lambda e, m=m, s=s: (m + s * e) ** 2) for m, s in zip(means, sigmas))
print(round(by_quadrature, 6))
assert np.isclose(by_quadrature, np.sum(means**2 + sigmas**2))

# %% [markdown]
# Differentiate (1.7) term by term. The derivative of $\mu_j^2$ is $2\mu_j$. And $\sigma_j^2 = \exp(\log\sigma_j^2)$ is its own derivative with respect to $\log\sigma_j^2$:
#
# $$\frac{\partial\,\mathbb E[\|z\|^2]}{\partial\mu_j} = 2\mu_j, \qquad \frac{\partial\,\mathbb E[\|z\|^2]}{\partial\log\sigma_j^2} = \sigma_j^2 \tag{1.8}$$
#
# These are the two numbers that every estimator below has to hit on average. The check differentiates (1.7) with the tape.

# %% tags=["eq-1.8"]
z_mean, z_log_var = tf.constant(means), tf.constant(np.log(sigmas**2))
with tf.GradientTape() as tape:
    tape.watch([z_mean, z_log_var])
    expectation = tf.reduce_sum(z_mean**2 + tf.exp(z_log_var))
mean_slope, log_var_slope = tape.gradient(expectation, [z_mean, z_log_var])
assert np.allclose(mean_slope, 2 * means)
assert np.allclose(log_var_slope, sigmas**2)

# %% [markdown]
# The pathwise estimate is one tape around one sample. To get many independent estimates at once we give each sample its own copy of the
# parameters: `z_mean` has one row per sample, and row $i$ of the gradient is the estimate from sample $i$.


# %%
def pathwise_gradient(z_mean, z_log_var, epsilon):
    with tf.GradientTape() as tape:
        tape.watch([z_mean, z_log_var])
        z = reparameterize(z_mean, z_log_var, epsilon)
        f = tf.reduce_sum(z**2, axis=-1)
    return tape.gradient(f, [z_mean, z_log_var])


# %% [markdown]
# ## Meet the other estimator: the score function
#
# There is a way to the same gradient that never differentiates $f$. Reinforcement learning uses it, under the name REINFORCE, because there $f$ is a reward that has no derivative.
#
# It starts from the left side of (1.5), where the parameters sit in the density. The integral is $\int f(z)\,q(z)\,dz$, and only $q$ depends on $\mu$. Since $\frac{d}{du}\log u = \frac1u$,
#
# $$\frac{\partial q(z)}{\partial\mu} = q(z)\,\frac{\partial\log q(z)}{\partial\mu} \tag{1.9}$$
#
# The check has the density from SciPy, the left slope from a finite difference of the density, the right one from a finite difference of its logarithm.

# %% tags=["eq-1.9"]
z, h = np.linspace(-4, 5, 50), 1e-5
density_slope = (stats.norm.pdf(z, 0.5 + h, 1.5) - stats.norm.pdf(z, 0.5 - h, 1.5)) / (2 * h)
log_slope = (stats.norm.logpdf(z, 0.5 + h, 1.5) - stats.norm.logpdf(z, 0.5 - h, 1.5)) / (2 * h)
assert np.allclose(density_slope, stats.norm.pdf(z, 0.5, 1.5) * log_slope, atol=1e-9)

# %% [markdown]
# The factor $q(z)$ on the right turns the integral back into an expectation: of $f(z)$ times $\partial\log q(z)/\partial\mu$, which is called the **score**.
# For the normal distribution $\log q(z) = -\frac12\log(2\pi) - \frac12\log\sigma^2 - \frac{(z-\mu)^2}{2\sigma^2}$ in each coordinate. Differentiate, then replace $z - \mu$ by $\sigma\varepsilon$:
#
# $$\frac{\partial\log q(z)}{\partial\mu_j} = \frac{z_j-\mu_j}{\sigma_j^2} = \frac{\varepsilon_j}{\sigma_j}, \qquad \frac{\partial\log q(z)}{\partial\log\sigma_j^2} = \tfrac12\left(\varepsilon_j^2 - 1\right) \tag{1.10}$$
#
# For the check write the log-density out, compare it with SciPy and with `vae_utils`, and let the tape differentiate it.


# %%
def log_density(z, z_mean, z_log_var):
    """log N(z; z_mean, exp(z_log_var)), summed over the last axis, in nats."""
    squared = (z - z_mean) ** 2 * tf.exp(-z_log_var)
    return -0.5 * tf.reduce_sum(np.log(2 * np.pi) + z_log_var + squared, axis=-1)


# %% tags=["eq-1.10"]
epsilon = np.random.default_rng(4).standard_normal((5, 3))
z = means + sigmas * epsilon
with tf.GradientTape() as tape:
    tape.watch([z_mean, z_log_var])
    log_q = log_density(z, z_mean, z_log_var)
    total = tf.reduce_sum(log_q)
mean_score, log_var_score = tape.gradient(total, [z_mean, z_log_var])
assert np.allclose(log_q, stats.norm.logpdf(z, means, sigmas).sum(axis=-1))
assert np.allclose(log_q, vae_utils.distributions.gaussian_log_prob(z, means, np.log(sigmas**2)))
assert np.allclose(mean_score, np.sum(epsilon / sigmas, axis=0))
assert np.allclose(log_var_score, np.sum(0.5 * (epsilon**2 - 1), axis=0))

# %% [markdown]
# One more step. The score averages to 0, because $\mathbb E[\varepsilon] = 0$. So any constant $b$ may be subtracted from $f$ without changing the average. It is called a **baseline**:
#
# $$\frac{\partial}{\partial\mu_j}\,\mathbb E[f(z)] = \mathbb E\left[\left(f(z) - b\right)\frac{\varepsilon_j}{\sigma_j}\right] \quad\text{for every constant } b \tag{1.11}$$
#
# Check it by quadrature for $f=\cos$ and three baselines, against the pathwise answer of (1.6).

# %% tags=["eq-1.11"]
pathwise_answer = expect(lambda e: -np.sin(0.5 + 1.5 * e))
for b in (0.0, 3.0, -7.0):
    score_answer = expect(lambda e, b=b: (np.cos(0.5 + 1.5 * e) - b) * e / 1.5)
    print(f"b = {b:4.0f}: {score_answer:.10f}   pathwise: {pathwise_answer:.10f}")
    assert abs(score_answer - pathwise_answer) < 1e-10

# %%
from vae_utils.distributions import gaussian_log_prob


def score_gradient(z_mean, z_log_var, epsilon, baseline):
    z = reparameterize(z_mean, z_log_var, epsilon)
    f = tf.reduce_sum(z**2, axis=-1)
    with tf.GradientTape() as tape:
        tape.watch([z_mean, z_log_var])
        log_q = gaussian_log_prob(z, z_mean, z_log_var)  # z was made outside the tape: a constant
        surrogate = (f - baseline) * log_q
    return tape.gradient(surrogate, [z_mean, z_log_var])


# %% [markdown]
# ### See that all three are unbiased, and how much they scatter
#
# Ten dimensions, every $\mu_j = \sigma_j = 1$. By (1.8) the true gradients are 2 for $\mu_1$ and 1 for $\log\sigma_1^2$. The baseline is the mean of $f$, which by (1.7) is $10\cdot(1+1)=20$.
# The table has one row for each estimator and parameter. Look at the last two columns: the $z$-score says whether the mean is right, the variance says what one sample is worth.

# %%
dim = 10
z_mean, z_log_var = tf.ones((REPEATS, dim)), tf.zeros((REPEATS, dim))
epsilon = np.random.default_rng(5).standard_normal((REPEATS, dim), dtype="float32")
estimates = {
    "pathwise": pathwise_gradient(z_mean, z_log_var, epsilon),
    "score, baseline": score_gradient(z_mean, z_log_var, epsilon, baseline=2.0 * dim),
    "score, no baseline": score_gradient(z_mean, z_log_var, epsilon, baseline=0.0),
}
print(f"{'estimator':>18} {'parameter':>9}  truth     mean ± standard error  z-score  variance")
for name, gradients in estimates.items():
    for parameter, truth, gradient in zip(("mu", "log var"), (2.0, 1.0), gradients):
        g = gradient.numpy()[:, 0].astype("float64")
        error = g.std() / np.sqrt(len(g))
        score = (g.mean() - truth) / error
        print(f"{name:>18} {parameter:>9} {truth:6.1f} {g.mean():8.4f} ± {error:.4f} {score:16.2f} {g.var():9.1f}")
        assert abs(score) < level

# %% [markdown]
# All six means agree with the truth at our level. They differ in the last column, by more than a factor of 100. Here is what single-sample estimates of the same slope look like.

# %% mystnb={"figure": {"caption": "Single-sample estimates of one gradient, whose true value is 2, in ten dimensions. All three estimators have the same mean.", "name": "fig-01-estimates"}, "image": {"alt": "Three overlaid histograms on a logarithmic density axis. The pathwise one is narrow around 2, the score function with baseline is wider, without baseline the widest, with tails beyond minus 50 and 80."}}
fig, ax = plt.subplots(figsize=(6.5, 3.8))
looks = {"pathwise": (BLUE, "-"), "score, baseline": (GREEN, "--"), "score, no baseline": (RED, ":")}
for name, (color, style) in looks.items():
    values = estimates[name][0].numpy()[:, 0]
    ax.hist(values, bins=100, range=(-80, 100), density=True, histtype="step", color=color, ls=style, lw=2.2, label=name)
ax.axvline(2, color=GREY, lw=1)
ax.set(xlabel="one-sample estimate of the gradient (true value 2)", ylabel="density (log scale)", yscale="log", ylim=(1e-6, 1))
ax.legend(frameon=False, fontsize=11, loc="upper right");

# %% [markdown]
# A single pathwise estimate lies within a few units of the truth. A score-function estimate often has the wrong sign, and can miss by 50 or more.
#
# ## Derive the three variances
#
# With this $f$ the variances can be computed exactly. Take every $\mu_j=\mu$ and $\sigma_j=\sigma$, and estimate the slope for $\mu_1$. All we need are even moments of $\varepsilon$ (odd ones are 0, by symmetry):
#
# $$\mathbb E[\varepsilon^2] = 1, \qquad \mathbb E[\varepsilon^4] = 3, \qquad \mathbb E[\varepsilon^6] = 15 \tag{1.12}$$
#
# They follow from $\mathbb E[\varepsilon^{k}] = (k-1)\,\mathbb E[\varepsilon^{k-2}]$, which is integration by parts with $\frac{d}{d\varepsilon}e^{-\varepsilon^2/2} = -\varepsilon e^{-\varepsilon^2/2}$. So $3 = 3\cdot1$ and $15 = 5\cdot3$. SciPy integrates them here.

# %% tags=["eq-1.12"]
for power, moment in [(2, 1), (4, 3), (6, 15)]:
    value, _error = integrate.quad(lambda e, k=power: e**k * stats.norm.pdf(e), -30, 30)
    assert abs(value - moment) < 1e-7

# %% [markdown]
# **Pathwise.** The estimate is $\partial f/\partial z_1 = 2z_1 = 2\mu + 2\sigma\varepsilon_1$. The constant $2\mu$ adds no variance, and $\operatorname{Var}(2\sigma\varepsilon_1) = 4\sigma^2$:
#
# $$\operatorname{Var}\left[2 z_1\right] = 4\sigma^2 \tag{1.13}$$
#
# The other coordinates don't appear, so the dimension doesn't matter. The check computes mean of the square minus square of the mean, by quadrature.

# %% tags=["eq-1.13"]
for m, s in [(1.0, 1.0), (0.5, 2.0), (-3.0, 0.2)]:
    first, second = expect(lambda e: 2 * (m + s * e)), expect(lambda e: (2 * (m + s * e)) ** 2)
    assert np.isclose(second - first**2, 4 * s**2)

# %% [markdown]
# **Score function, no baseline.** The estimate is $S = f(z)\,\varepsilon_1/\sigma$. Only the first coordinate is tied to $\varepsilon_1$. So split $f = A + R$ into $A = z_1^2$ and the rest $R = z_2^2+\dots+z_d^2$, which is independent of $\varepsilon_1$.
#
# First $A$. Expand $z_1^2 = \mu^2 + 2\mu\sigma\varepsilon_1 + \sigma^2\varepsilon_1^2$, multiply by $\varepsilon_1^2$, and drop odd powers:
# $\mathbb E[A\varepsilon_1^2] = \mu^2\cdot1 + \sigma^2\cdot3$. For $A^2 = z_1^4$ the even powers are $\mu^4 + 6\mu^2\sigma^2\varepsilon_1^2 + \sigma^4\varepsilon_1^4$ (binomial theorem).
# Multiply by $\varepsilon_1^2$, and the moments 1, 3 and 15 give $\mu^4 + 6\cdot3\,\mu^2\sigma^2 + 15\sigma^4$:
#
# $$\mathbb E[A\,\varepsilon_1^2] = \mu^2 + 3\sigma^2, \qquad \mathbb E[A^2\varepsilon_1^2] = \mu^4 + 18\mu^2\sigma^2 + 15\sigma^4 \tag{1.14}$$

# %% tags=["eq-1.14"]
for m, s in [(1.0, 1.0), (0.5, 2.0), (-3.0, 0.2)]:
    assert np.isclose(expect(lambda e: (m + s * e) ** 2 * e**2), m**2 + 3 * s**2)
    assert np.isclose(expect(lambda e: (m + s * e) ** 4 * e**2), m**4 + 18 * m**2 * s**2 + 15 * s**4)

# %% [markdown]
# Now $R$, a sum of $d-1$ independent copies of $z^2$. Write $m$ for the mean of one copy and $v$ for its variance. By (1.7), $m = \mu^2+\sigma^2$.
# And $v = \mathbb E[z^4] - m^2 = (\mu^4 + 6\mu^2\sigma^2 + 3\sigma^4) - (\mu^2+\sigma^2)^2 = 4\mu^2\sigma^2 + 2\sigma^4$.
# Means add, variances of independent terms add, and $\mathbb E[R^2] = \operatorname{Var}[R] + \mathbb E[R]^2$:
#
# $$\mathbb E[R] = (d-1)\,m, \qquad \mathbb E[R^2] = (d-1)\,v + (d-1)^2 m^2, \qquad m = \mu^2+\sigma^2, \quad v = 4\mu^2\sigma^2 + 2\sigma^4 \tag{1.15}$$
#
# SciPy knows the distribution of $R/\sigma^2$: it is the non-central chi-squared distribution with $d-1$ degrees of freedom. That is an independent source for both moments.


# %% tags=["eq-1.15"]
def rest(m, s, dim):
    mean, variance = (dim - 1) * (m**2 + s**2), (dim - 1) * (4 * m**2 * s**2 + 2 * s**4)
    return mean, variance + mean**2


for m, s, d in [(1.0, 1.0, 2), (0.5, 2.0, 10), (-3.0, 0.2, 100)]:
    chi2 = stats.ncx2(df=d - 1, nc=(d - 1) * (m / s) ** 2, scale=s**2)
    assert np.allclose(rest(m, s, d), (chi2.mean(), chi2.var() + chi2.mean() ** 2))

# %% [markdown]
# Put the pieces together. $\mathbb E[S^2] = \mathbb E[(A+R)^2\varepsilon_1^2]/\sigma^2$. Expand the square, and use that $R$ is independent of $A$ and $\varepsilon_1$, so that expectations of products
# split, with $\mathbb E[\varepsilon_1^2]=1$. Then subtract $\mathbb E[S]^2 = (2\mu)^2$:
#
# $$\operatorname{Var}[S] = \frac{\mathbb E[A^2\varepsilon_1^2] + 2\,\mathbb E[A\varepsilon_1^2]\,\mathbb E[R] + \mathbb E[R^2]}{\sigma^2} - 4\mu^2 \tag{1.16}$$
#
# **Score function with the baseline** $b=\mathbb E[f]$. The estimate is $T = (f-b)\,\varepsilon_1/\sigma$. Now $f - b = A' + R'$, with $A' = A - m = 2\mu\sigma\varepsilon_1 + \sigma^2(\varepsilon_1^2-1)$, and $R'$ of mean 0 and variance $(d-1)v$. So the middle term of the expanded square is 0.
# For the first, the even part of $A'^2\varepsilon_1^2$ is $4\mu^2\sigma^2\varepsilon_1^4 + \sigma^4(\varepsilon_1^6 - 2\varepsilon_1^4 + \varepsilon_1^2)$, with mean $12\mu^2\sigma^2 + (15 - 6 + 1)\,\sigma^4$. Divide by $\sigma^2$ and subtract $4\mu^2$:
#
# $$\operatorname{Var}[T] = 8\mu^2 + 10\sigma^2 + (d-1)\left(4\mu^2+2\sigma^2\right) \tag{1.17}$$
#
# To check both without repeating the derivation, do quadrature in two and three dimensions: a sum over all combinations of the points, of the estimate itself and of its square.


# %%
def score_variance(m, s, dim):
    mean, second = rest(m, s, dim)
    first = m**4 + 18 * m**2 * s**2 + 15 * s**4 + 2 * (m**2 + 3 * s**2) * mean
    return (first + second) / s**2 - 4 * m**2


def baseline_variance(m, s, dim):
    return 8 * m**2 + 10 * s**2 + (dim - 1) * (4 * m**2 + 2 * s**2)


# %% tags=["eq-1.16", "eq-1.17"]
x, w = np.polynomial.hermite_e.hermegauss(6)  # exact up to degree 11; the squares here have degree 6
for dim in (1, 2, 3):
    grid = np.stack(np.meshgrid(*[x] * dim), axis=-1)
    chance = np.prod(np.stack(np.meshgrid(*[w] * dim), axis=-1), axis=-1) / np.sqrt(2 * np.pi) ** dim
    for m, s in [(1.0, 1.0), (0.5, 2.0), (-3.0, 0.2)]:
        f = np.sum((m + s * grid) ** 2, axis=-1)
        for b, formula in [(0.0, score_variance), (dim * (m**2 + s**2), baseline_variance)]:
            estimate = (f - b) * grid[..., 0] / s
            by_grid = np.sum(chance * estimate**2) - np.sum(chance * estimate) ** 2
            assert np.isclose(by_grid, formula(m, s, dim)), (dim, m, s, b)
print("3 dimensions × 3 parameter pairs × 2 estimators agree")

# %% [markdown]
# At $\mu=\sigma=1$ the numbers are small enough to remember. In (1.16) the pieces are $1+18+15=34$, $2\cdot4\cdot2(d-1)$ and $6(d-1)+4(d-1)^2$. Collect the powers of $d$:
#
# $$\operatorname{Var}_{\text{pathwise}} = 4, \qquad \operatorname{Var}_{\text{baseline}} = 6d + 12, \qquad \operatorname{Var}_{\text{no baseline}} = 4d^2 + 14d + 12 \tag{1.18}$$
#
# So as the dimension grows, the first stays where it is, the second grows like $d$, the third like $d^2$. For the check, let quadrature have the second word at $d=1$ and $d=2$, and `ncx2` at every $d$:
# by conditioning on $\varepsilon_1$, $\mathbb E[f^2] = \operatorname{Var}[R] + (z_1^2 + \mathbb E[R])^2$.

# %% tags=["eq-1.18", "nbval-check-output"]
print("   d  pathwise  baseline  no baseline")
for d in (1, 2, 10, 100):
    R = stats.ncx2(df=d - 1, nc=d - 1) if d > 1 else stats.norm(0, 0)
    r_mean, r_var = (R.mean(), R.var()) if d > 1 else (0.0, 0.0)
    pathwise = expect(lambda e: (2 + 2 * e) ** 2) - 4
    with_b, without_b = (
        expect(lambda e, b=b: (((1 + e) ** 2 + r_mean - b) ** 2 + r_var) * e**2) - 4 for b in (2.0 * d, 0.0)
    )
    print(f"{d:4d} {pathwise:9.0f} {with_b:9.0f} {without_b:12.0f}")
    assert np.allclose([pathwise, with_b, without_b], [4, 6 * d + 12, 4 * d**2 + 14 * d + 12])

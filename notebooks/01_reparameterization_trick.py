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
# **What you'll do.** Send a gradient through a random draw, and measure how noisy that gradient is.
#
# **What you'll learn.**
#
# - see why a sampler gives no gradient, and move its noise outside so that it does;
# - choose what the network outputs, so that float32 copes with very small and very large ones;
# - test that a sampler draws from the distribution you meant;
# - derive and measure the variance of two gradient estimators, and know when each one wins;
# - write the `Sampling` layer of every later chapter, and repeat its noise on demand;
# - draw many samples per example with an explicit noise input.
#
# **What you'll need.** Python, basic Keras, and first-year probability (mean, variance, the normal density).
# No data, nothing to train, no GPU.
#
# **Time.** About 40 minutes to read, 15 to 30 seconds to run on two CPU cores.

# %%
import os
import sys

if "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
    get_ipython().run_line_magic("pip", "install -q --no-deps git+https://github.com/every-equation-executed/vae@main")
    import vae_utils  # if it is missing, pip says why above: is this notebook online? (on Kaggle, switch Internet on)

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers
from scipy import integrate, optimize, stats

import vae_utils

# %% [markdown]
# Two settings for the whole notebook. `REPEATS` says how often we repeat each experiment. With the environment variable
# `VAE_UTILS_QUICK=1` there are ten times fewer repeats: the pictures get rougher, and every check still has to pass.

# %%
QUICK = os.environ.get("VAE_UTILS_QUICK", "") not in ("", "0")
REPEATS = 20_000 if QUICK else 200_000
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
# with respect to $\mu$ and $\sigma$. `tf.numpy_function` runs NumPy code among TensorFlow operations. A `GradientTape` records the
# operations inside its block, so that it can differentiate them afterwards. We'll call it the tape.


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
# that TensorFlow can't see into. NumPy isn't to blame: TensorFlow's own samplers of whole numbers answer the same. Here are a coin flip and a Poisson count.

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
    box = {
        "boxstyle": f"{style},pad=0.35",
        "facecolor": "white",
        "edgecolor": color,
        "linewidth": 2,
    }
    ax.text(x, y, text, ha="center", va="center", bbox=box, zorder=3)


def arrow(ax, start, end, color="black", style="-", bend=0.0, gap=17):
    line = {"arrowstyle": "-|>", "color": color, "linestyle": style, "shrinkA": gap, "shrinkB": gap}
    line |= {"linewidth": 1.6, "mutation_scale": 16, "connectionstyle": f"arc3,rad={bend}"}
    ax.annotate("", end, start, arrowprops=line, zorder=2)


# %% mystnb={"figure": {"caption": "The trick. Above: the noise is drawn inside the node that makes z, and no gradient gets past it. Below: the noise is an input, and the gradient has a path of multiplications and additions.", "name": "fig-01-trick"}, "image": {"alt": "Two computation graphs. In the upper one mu and sigma enter a random node that gives z and then the loss; the gradient stops at the random node. In the lower one epsilon enters from outside, is multiplied by sigma and added to mu to give z; the gradient flows back to mu and sigma."}}
fig, (top, low) = plt.subplots(2, 1, figsize=(6.5, 5.4), height_ratios=(2, 3))
mean, sd, z_at, f_at = (0, 2), (0, 1), (4.6, 1.5), (6, 1.5)
for ax in (top, low):
    for place, text, color in [
        (mean, "$\\mu$", BLUE),
        (sd, "$\\sigma$", BLUE),
        (z_at, "$z$", GREY),
        (f_at, "$f(z)$", GREY),
    ]:
        node(ax, *place, text, color)
    arrow(ax, z_at, f_at)
    arrow(ax, f_at, z_at, RED, "--", bend=0.5)
    ax.axis("off")
top.set(xlim=(-0.4, 6.4), ylim=(0.6, 2.6), title="noise inside: the gradient stops")
node(top, 2.6, 1.5, "draw from\n$\\mathcal{N}(\\mu, \\sigma^2)$", RED, "round4")
for start, end in [(mean, (2.2, 1.7)), (sd, (2.2, 1.3)), ((2.9, 1.5), z_at)]:
    arrow(top, start, end)
arrow(top, z_at, (3.0, 1.5), RED, "--", bend=0.5)
top.text(3.75, 2.25, "None", color=RED, ha="center", weight="bold")
low.set(xlim=(-0.4, 6.4), ylim=(-0.5, 2.6), title="noise outside: the gradient gets through")
noise_at, times, plus = (0, 0), (1.7, 0.5), (3.1, 1.5)
for place, text, color, style in [
    (noise_at, "$\\varepsilon$", ORANGE, "round4"),
    (times, "×", GREY, "circle"),
    (plus, "+", GREY, "circle"),
]:
    node(low, *place, text, color, style)
for start, end in [(sd, times), (noise_at, times), (times, plus), (mean, plus), (plus, z_at)]:
    arrow(low, start, end)
for start, end in [(z_at, plus), (plus, mean), (plus, times), (times, sd)]:
    arrow(low, start, end, RED, "--", bend=0.35)
low.text(0.4, -0.3, "drawn from $\\mathcal{N}(0, 1)$", va="center", ha="left", color=GREY)
fig.tight_layout()
# %% [markdown]
# In the lower graph every node on the way from $z$ back to $\mu$ and $\sigma$ is a product or a sum. The only random node is
# $\varepsilon$, and nobody needs its gradient.
#
# One surprise before we go on. Look at what TensorFlow's own *normal* sampler does, the one we avoided above.

# %%
with tf.GradientTape() as tape:
    z = tf.random.stateless_normal([], seed=[1, 2], mean=mu, stddev=sigma)
noise = tf.random.stateless_normal([], seed=[1, 2])
slopes = tape.gradient(z, [mu, sigma])
print("slopes: ", [f"{float(slope):.4f}" for slope in slopes], " epsilon:", f"{noise:.4f}")
assert np.allclose(slopes, [1.0, noise])

# %% [markdown]
# It doesn't answer `None`. The slopes are 1 and $\varepsilon$, as in equation (1.2): `stateless_normal` draws
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
# Other ways to get a positive number look as good on paper. Here are six
# ways to turn a raw output $r$ into $\sigma$. (The meaning of $r$ differs: in the last two rows it is $\log\sigma^2$.) Look for `nan`, `inf`, a zero, or a negative number in float32.

# %% tags=["nbval-check-output"]
ways = {
    "r itself": lambda r: r,
    "sqrt(r)": tf.sqrt,
    "log(1 + exp(r))": lambda r: tf.math.log(1.0 + tf.exp(r)),
    "softplus(r)": keras.ops.softplus,
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
# - `r itself` is a negative σ for every negative output, and zero at 0.
# - `sqrt(r)`, which reads the output as $\sigma^2$, is `nan` for every negative output.
# - `log(1 + exp(r))`, typed as on paper, is 0 at −60 and `inf` at 120. Keras' `softplus`, the same function computed with more care, mends both, but at −120 it is 0 too.
# - `sqrt(exp(r))` equals `exp(r / 2)` on paper. In float32 `exp(120)` is already `inf`, and `exp(-120)` is already 0, before the square root is taken.
#
# What about the gradient? (`tape.watch` makes the tape treat a constant like a variable.)

# %% tags=["nbval-check-output"]
print(f"{'r':>16}", *(f"{float(value):9.0f}" for value in r))
for name, way in ways.items():
    with tf.GradientTape() as tape:
        tape.watch(r)
        sigmas = way(r)
    print(f"{name:>16}", *(f"{float(value):9.1e}" for value in tape.gradient(sigmas, r)))

# %% [markdown]
# At $r=-120$ and $r=120$, `sqrt(exp(r))` has the gradient `nan`: the chain rule multiplies 0 by infinity.
# A weight updated with `nan` is `nan` from then on. `exp(r / 2)` stays finite here. Where does it break?

# %% mystnb={"figure": {"caption": "$\\sigma$ in float32, computed in two ways that agree on paper. The exponential of half the log-variance covers twice the range.", "name": "fig-01-float32"}, "image": {"alt": "Standard deviation on a logarithmic axis against log variance from minus 200 to 200. The line for sqrt of exp ends near minus 88 and 88; the line for exp of half ends near minus 175 and 177."}}
grid = tf.cast(tf.linspace(-200.0, 200.0, 2001), tf.float32)
fig, ax = plt.subplots(figsize=(6.5, 3.8))
for name, color, width in [("sqrt(exp(r))", ORANGE, 9), ("exp(r / 2)", BLUE, 2.5)]:
    sigmas = ways[name](grid).numpy()
    works = (sigmas > 0) & np.isfinite(sigmas)
    x, y = grid.numpy()[works], sigmas[works]
    ax.plot(x, y, color=color, lw=width, label=f"{name}: {x[0]:.0f} to {x[-1]:.0f}")
    ax.plot(x[[0, -1]], y[[0, -1]], "o", color=color, markersize=width + 3)
    print(f"{name:>12}: positive and finite from {x[0]:.1f} (σ = {y[0]:.0e}) to {x[-1]:.1f} (σ = {y[-1]:.0e})")
ax.set(yscale="log", xlabel="network output r = log σ²", ylabel="σ in float32 (log scale)")
ax.set_yticks(10.0 ** np.arange(-36, 37, 12))
_ = ax.legend(loc="upper left", frameon=False)
# %% [markdown]
# The dots mark where each way stops giving a positive, finite number. `exp(r / 2)` covers twice the range, because its argument is half as
# large. It has ends too. And the loss of a VAE also holds $\sigma^2$ itself, whose exponential overflows where the thick line ends.
# No sensible $\sigma$ lies out there: where the thick line begins, it is $10^{-19}$.
#
# > **Note.** TensorFlow on a CPU rounds numbers below about $10^{-38}$ to 0. A processor or library that keeps these tiny numbers moves the left ends a little further out.
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
# The check nudges $\log\sigma^2$ up and down by $10^{-6}$ in float64 with $\varepsilon$ held fixed. It uses no derivative.


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
# from $n$ normal draws has the standard error $\sigma^2\sqrt{2/n}$. A correlation whose true value is 0 has a standard error of about $1/\sqrt n$. We divide each deviation by its standard
# error and call the result $z$-score (the name is old; it has nothing to do with our $z$). Our level, here and everywhere below: $|z\text{-score}| < 4$. A correct sampler
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
    ends = (line[0], line[-1])
    ax.hist(samples[:, j], bins=30, range=ends, density=True, color=ORANGE, edgecolor="white", label="samples")
    ax.plot(line, density.pdf(line), color=BLUE, lw=2, label="density")
    ax.set(xlabel=f"$z_{j + 1}$", title=f"$\\mu$ = {target_mean[j]:.1f}, $\\sigma$ = {target_sigma[j]}")
axes[0].set_ylabel("probability density")
axes[1].legend(frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=(0.66, 1.0))
fig.tight_layout()
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
# To check it we need two different integrals. For the left side SciPy integrates $f(z)\,q(z)$. For the right side we use Gauss–Hermite quadrature: a weighted sum over 40 fixed values
# of $\varepsilon$, called nodes, which is exact for polynomials of degree up to 79. You'll see `expect` often.

# %%
nodes, weights = np.polynomial.hermite_e.hermegauss(40)


def expect(values):
    """The mean of g(epsilon) for epsilon ~ N(0, 1), given the values of g at the nodes."""
    return np.sum(weights * values) / np.sqrt(2 * np.pi)


def integrate_mean(f, mu, sigma):
    """The mean of f(z) for z ~ N(mu, sigma²), by SciPy's integration over z."""
    low, high = mu - 12 * sigma, mu + 12 * sigma
    return integrate.quad(lambda z: f(z) * stats.norm.pdf(z, mu, sigma), low, high, epsabs=1e-12, limit=500)[0]


# %% tags=["eq-1.5"]
for f in (np.square, np.tanh, np.cos):
    left, right = integrate_mean(f, 0.5, 1.5), expect(f(0.5 + 1.5 * nodes))
    print(f"{f.__name__:>6}: {left:.6f} {right:.6f}")
    assert abs(left - right) < 1e-5

# %% [markdown]
# (The tolerance is $10^{-5}$ for the sake of $\tanh$, which is no polynomial.) Look at the right side of (1.5) again. The average is over $\varepsilon$, whose distribution has no parameters. So the
# derivative with respect to $\mu$ only meets $f$. It may go inside the average if $f$ is smooth and doesn't grow too fast. Kinks, as in a ReLU, do no harm; jumps do. By the chain rule and (1.2):
#
# $$\frac{\partial}{\partial\mu}\,\mathbb E_{z\sim q}[f(z)] = \mathbb E_{\varepsilon}\left[f'(\mu+\sigma\varepsilon)\right] \tag{1.6}$$
#
# The quantity inside the brackets is the **pathwise gradient**: draw one $\varepsilon$, hold it fixed, differentiate. For $\log\sigma^2$ it is $f'(\mu+\sigma\varepsilon)\cdot\frac12\sigma\varepsilon$, by (1.4). The check takes
# the slope of the left side by a finite difference of SciPy's integral.

# %% tags=["eq-1.6"]
z = 0.5 + 1.5 * nodes
for f, slope_of_f in [(np.square, 2 * z), (np.cos, -np.sin(z))]:
    up, down = (integrate_mean(f, mean, 1.5) for mean in (0.501, 0.499))
    slope, inside = (up - down) / 0.002, expect(slope_of_f)
    print(f"{f.__name__:>6}: slope of the mean {slope:.5f}, mean of the slope {inside:.5f}")
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
by_quadrature = sum(expect((means[j] + sigmas[j] * nodes) ** 2) for j in range(3))
print(round(by_quadrature, 6))
assert np.isclose(by_quadrature, np.sum(means**2 + sigmas**2))

# %% [markdown]
# Differentiate (1.7) term by term. The derivative of $\mu_j^2$ is $2\mu_j$. And $\sigma_j^2 = \exp(\log\sigma_j^2)$ is its own derivative with respect to $\log\sigma_j^2$:
#
# $$\frac{\partial\,\mathbb E[\|z\|^2]}{\partial\mu_j} = 2\mu_j, \qquad \frac{\partial\,\mathbb E[\|z\|^2]}{\partial\log\sigma_j^2} = \sigma_j^2 \tag{1.8}$$
#
# These are the two numbers that every estimator below has to hit on average. An estimator that does is called **unbiased**. The check differentiates (1.7) with the tape.

# %% tags=["eq-1.8"]
z_mean, z_log_var = tf.constant(means), tf.constant(np.log(sigmas**2))
with tf.GradientTape() as tape:
    tape.watch([z_mean, z_log_var])
    expectation = tf.reduce_sum(z_mean**2 + tf.exp(z_log_var))
mean_slope, log_var_slope = tape.gradient(expectation, [z_mean, z_log_var])
assert np.allclose(mean_slope, 2 * means)
assert np.allclose(log_var_slope, sigmas**2)

# %% [markdown]
# For the pathwise estimate, put a tape around one sample. To get many independent estimates at once we give each sample its own copy of the
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
# There is a way to the same gradient that never differentiates $f$. Reinforcement learning uses it, under the name REINFORCE, because there $f$ is a reward whose derivative nobody knows.
#
# It starts from the left side of (1.5), where the parameters sit in the density. In $\int f(z)\,q(z)\,dz$ only $q$ depends on $\mu$, and $q$ is smooth.
# So the slope is $\int f(z)\,\frac{\partial q(z)}{\partial\mu}\,dz$, even where $f$ jumps. Since $\frac{d}{du}\log u = \frac1u$, the chain rule gives
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
# Put this into the integral. The factor $q(z)$ turns it back into an expectation: of $f(z)$ times $\partial\log q(z)/\partial\mu$, which is called the **score**.
# For the normal distribution $\log q(z) = -\frac12\log(2\pi) - \frac12\log\sigma^2 - \frac{(z-\mu)^2}{2\sigma^2}$ in each coordinate. Differentiate, then replace $z - \mu$ by $\sigma\varepsilon$:
#
# $$\frac{\partial\log q(z)}{\partial\mu_j} = \frac{z_j-\mu_j}{\sigma_j^2} = \frac{\varepsilon_j}{\sigma_j}, \qquad \frac{\partial\log q(z)}{\partial\log\sigma_j^2} = \tfrac12\left(\varepsilon_j^2 - 1\right) \tag{1.10}$$
#
# For the check write the log-density out, compare it with SciPy and with `vae_utils`, and let the tape differentiate it.


# %%
def log_density(z, z_mean, z_log_var):
    """log N(z; z_mean, exp(z_log_var)), summed over the last axis, with the natural logarithm."""
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
# One more step. The score averages to 0, because $\mathbb E[\varepsilon] = 0$ (and, for $\log\sigma^2$, because $\mathbb E[\varepsilon^2]=1$). So any constant $b$ may be subtracted from $f$ without changing the average. It is called a **baseline**:
#
# $$\frac{\partial}{\partial\mu_j}\,\mathbb E[f(z)] = \mathbb E\left[\left(f(z) - b\right)\frac{\varepsilon_j}{\sigma_j}\right] \quad\text{for every constant } b \tag{1.11}$$
#
# Check it by quadrature for $f=\cos$ and three baselines, against the pathwise answer of (1.6).

# %% tags=["eq-1.11"]
z = 0.5 + 1.5 * nodes
pathwise_answer = expect(-np.sin(z))
for b in (0.0, 3.0, -7.0):
    score_answer = expect((np.cos(z) - b) * nodes / 1.5)
    print(f"b = {b:4.0f}: {score_answer:.10f}   pathwise: {pathwise_answer:.10f}")
    assert abs(score_answer - pathwise_answer) < 1e-10

# %% [markdown]
# As code: treat $f-b$ as a constant and differentiate $(f-b)\log q(z)$. That gives $(f-b)$ times the score. The $z$ inside has to be a constant too, so it is made outside the tape.

# %%
from vae_utils.distributions import gaussian_log_prob


def score_gradient(z_mean, z_log_var, epsilon, baseline):
    z = reparameterize(z_mean, z_log_var, epsilon)
    f = tf.reduce_sum(z**2, axis=-1)
    with tf.GradientTape() as tape:
        tape.watch([z_mean, z_log_var])
        product = (f - baseline) * gaussian_log_prob(z, z_mean, z_log_var)
    return tape.gradient(product, [z_mean, z_log_var])


# %% [markdown]
# ### See that all three are unbiased, and how much they scatter
#
# Ten dimensions, every $\mu_j = \sigma_j = 1$. By (1.8) the true gradients are 2 for $\mu_1$ and 1 for $\log\sigma_1^2$. The baseline is the mean of $f$, which by (1.7) is $10\cdot(1+1)=20$.
# The table has one row for each estimator and parameter. Look at the last two columns: the $z$-score says whether the mean is right, the variance says how far single estimates scatter around it.

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
    for parameter, truth, gradient in zip(("mu", "log var"), (2.0, 1.0), gradients, strict=True):
        g = gradient.numpy()[:, 0].astype("float64")
        error = g.std() / np.sqrt(len(g))
        score = (g.mean() - truth) / error
        print(f"{name:>18} {parameter:>9} {truth:6.1f} {g.mean():8.4f} ± {error:.4f} {score:16.2f} {g.var():9.1f}")
        assert abs(score) < level

# %% [markdown]
# All six means agree with the truth at our level. They differ in the last column, by more than a factor of 100. Here is what single-sample estimates of the same slope look like.

# %% mystnb={"figure": {"caption": "Single-sample estimates of one gradient, whose true value is 2, in ten dimensions. All three estimators have the same mean.", "name": "fig-01-estimates"}, "image": {"alt": "Three overlaid histograms on a logarithmic density axis. The pathwise one is narrow around 2, the score function with baseline is wider, without baseline the widest, with tails beyond minus 50 and 80."}}
fig, ax = plt.subplots(figsize=(6.5, 3.8))
for name, color, style in zip(estimates, (BLUE, GREEN, RED), ("-", "--", ":"), strict=True):
    values = estimates[name][0].numpy()[:, 0]
    look = {"color": color, "ls": style, "lw": 2.2, "histtype": "step"}
    ax.hist(values, bins=160, range=(-150, 170), density=True, label=name, **look)
ax.axvline(2, color=GREY, lw=1)
ax.set(xlabel="one-sample estimate of the gradient (true value 2)", ylabel="density (log scale)")
ax.set(yscale="log", ylim=(1e-5, 1), xlim=(-90, 110))
_ = ax.legend(frameon=False, fontsize=11, loc="upper right")
# %%
for name in estimates:
    values = estimates[name][0].numpy()[:, 0]
    print(f"{name:>18}: wrong sign {np.mean(values < 0):5.1%}, largest miss {np.abs(values - 2).max():6.1f}")

# %% [markdown]
# In 200,000 draws no pathwise estimate misses by more than 9.3. The score function misses by up to 131.6 with a baseline and 210.2 without.
# Without one, the sign is wrong in half of all draws. There is a reason: $f$ is never negative, so $f\varepsilon_1/\sigma$ has the sign of $\varepsilon_1$, and that is a coin flip.
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
    assert abs(integrate_mean(np.polynomial.Polynomial.basis(power), 0.0, 1.0) - moment) < 1e-7

# %% [markdown]
# **Pathwise.** The estimate is $\partial f/\partial z_1 = 2z_1 = 2\mu + 2\sigma\varepsilon_1$. The constant $2\mu$ adds no variance, and $\operatorname{Var}(2\sigma\varepsilon_1) = 4\sigma^2$:
#
# $$\operatorname{Var}\left[2 z_1\right] = 4\sigma^2 \tag{1.13}$$
#
# The other coordinates don't appear, so the dimension doesn't matter. The check computes mean of the square minus square of the mean, by quadrature.

# %% tags=["eq-1.13"]
for mu, sigma in [(1.0, 1.0), (0.5, 2.0), (-3.0, 0.2)]:
    estimate = 2 * (mu + sigma * nodes)
    assert np.isclose(expect(estimate**2) - expect(estimate) ** 2, 4 * sigma**2)

# %% [markdown]
# **Score function, no baseline.** The estimate is $S = f(z)\,\varepsilon_1/\sigma$. Only the first coordinate is tied to $\varepsilon_1$. So split $f = A + R$ into $A = z_1^2$ and the rest $R = z_2^2+\dots+z_d^2$, which is independent of $\varepsilon_1$.
#
# First $A$. Expand $z_1^2 = \mu^2 + 2\mu\sigma\varepsilon_1 + \sigma^2\varepsilon_1^2$, multiply by $\varepsilon_1^2$, and drop odd powers:
# $\mathbb E[A\varepsilon_1^2] = \mu^2\cdot1 + \sigma^2\cdot3$. For $A^2 = z_1^4$ the even powers are $\mu^4 + 6\mu^2\sigma^2\varepsilon_1^2 + \sigma^4\varepsilon_1^4$ (binomial theorem).
# Multiply by $\varepsilon_1^2$, and the moments 1, 3 and 15 give $\mu^4 + 6\cdot3\,\mu^2\sigma^2 + 15\sigma^4$:
#
# $$\mathbb E[A\,\varepsilon_1^2] = \mu^2 + 3\sigma^2, \qquad \mathbb E[A^2\varepsilon_1^2] = \mu^4 + 18\mu^2\sigma^2 + 15\sigma^4 \tag{1.14}$$
#
# Quadrature takes the products as they stand, with no expansion.

# %% tags=["eq-1.14"]
for mu, sigma in [(1.0, 1.0), (0.5, 2.0), (-3.0, 0.2)]:
    z = mu + sigma * nodes
    assert np.isclose(expect(z**2 * nodes**2), mu**2 + 3 * sigma**2)
    assert np.isclose(expect(z**4 * nodes**2), mu**4 + 18 * mu**2 * sigma**2 + 15 * sigma**4)

# %% [markdown]
# Now $R$, a sum of $d-1$ independent copies of $z^2$. Write $m$ for the mean of one copy and $v$ for its variance. By (1.7), $m = \mu^2+\sigma^2$.
# And $v = \mathbb E[z^4] - m^2 = (\mu^4 + 6\mu^2\sigma^2 + 3\sigma^4) - (\mu^2+\sigma^2)^2 = 4\mu^2\sigma^2 + 2\sigma^4$.
# Means add, variances of independent terms add, and $\mathbb E[R^2] = \operatorname{Var}[R] + \mathbb E[R]^2$:
#
# $$\mathbb E[R] = (d-1)\,m, \qquad \mathbb E[R^2] = (d-1)\,v + (d-1)^2 m^2, \qquad m = \mu^2+\sigma^2, \quad v = 4\mu^2\sigma^2 + 2\sigma^4 \tag{1.15}$$
#
# SciPy knows the distribution of $R/\sigma^2$: it is the non-central chi-squared distribution with $d-1$ degrees of freedom. That is an independent source for both moments.


# %% tags=["eq-1.15"]
def rest(mu, sigma, dim):
    mean, variance = (dim - 1) * (mu**2 + sigma**2), (dim - 1) * (4 * mu**2 * sigma**2 + 2 * sigma**4)
    return mean, variance + mean**2


for mu, sigma, d in [(1.0, 1.0, 2), (0.5, 2.0, 10), (-3.0, 0.2, 100)]:
    chi2 = stats.ncx2(df=d - 1, nc=(d - 1) * (mu / sigma) ** 2, scale=sigma**2)
    assert np.allclose(rest(mu, sigma, d), (chi2.mean(), chi2.var() + chi2.mean() ** 2))

# %% [markdown]
# Put the pieces together. $\mathbb E[S^2] = \mathbb E[(A+R)^2\varepsilon_1^2]/\sigma^2$. Expand the square, and use that $R$ is independent of $A$ and $\varepsilon_1$, so that expectations of products
# split, with $\mathbb E[\varepsilon_1^2]=1$. Then subtract $\mathbb E[S]^2$, which by (1.8) is $(2\mu)^2$:
#
# $$\operatorname{Var}[S] = \frac{\mathbb E[A^2\varepsilon_1^2] + 2\,\mathbb E[A\varepsilon_1^2]\,\mathbb E[R] + \mathbb E[R^2]}{\sigma^2} - 4\mu^2 \tag{1.16}$$
#
# **Score function with the baseline** $b=\mathbb E[f]$. The estimate is $T = (f-b)\,\varepsilon_1/\sigma$. Now $f - b = A' + R'$, with $A' = A - m = 2\mu\sigma\varepsilon_1 + \sigma^2(\varepsilon_1^2-1)$, and $R'$ of mean 0 and variance $(d-1)v$. So the middle term of the expanded square is 0.
# For the first, the even part of $A'^2\varepsilon_1^2$ is $4\mu^2\sigma^2\varepsilon_1^4 + \sigma^4(\varepsilon_1^6 - 2\varepsilon_1^4 + \varepsilon_1^2)$, with mean $12\mu^2\sigma^2 + (15 - 6 + 1)\,\sigma^4$. Divide by $\sigma^2$ and subtract $4\mu^2$:
#
# $$\operatorname{Var}[T] = 8\mu^2 + 10\sigma^2 + (d-1)\left(4\mu^2+2\sigma^2\right) \tag{1.17}$$
#
# To check both without repeating the derivation, do quadrature in one, two and three dimensions: a sum over all combinations of the points, of the estimate itself and of its square.


# %%
def score_variance(mu, sigma, dim):
    mean, second = rest(mu, sigma, dim)
    first = mu**4 + 18 * mu**2 * sigma**2 + 15 * sigma**4 + 2 * (mu**2 + 3 * sigma**2) * mean
    return (first + second) / sigma**2 - 4 * mu**2


def baseline_variance(mu, sigma, dim):
    return 8 * mu**2 + 10 * sigma**2 + (dim - 1) * (4 * mu**2 + 2 * sigma**2)


# %% tags=["eq-1.16", "eq-1.17"]
x, w = np.polynomial.hermite_e.hermegauss(6)  # exact up to degree 11; the squares here have degree 6
for dim in (1, 2, 3):
    grid = np.stack(np.meshgrid(*[x] * dim), axis=-1)
    chance = np.prod(np.stack(np.meshgrid(*[w] * dim), axis=-1), axis=-1) / np.sqrt(2 * np.pi) ** dim
    for mu, sigma in [(1.0, 1.0), (0.5, 2.0), (-3.0, 0.2)]:
        f = np.sum((mu + sigma * grid) ** 2, axis=-1)
        for b, formula in [(0.0, score_variance), (dim * (mu**2 + sigma**2), baseline_variance)]:
            estimate = (f - b) * grid[..., 0] / sigma
            by_grid = np.sum(chance * estimate**2) - np.sum(chance * estimate) ** 2
            assert np.isclose(by_grid, formula(mu, sigma, dim)), (dim, mu, sigma, b)
print("3 dimensions × 3 parameter pairs × 2 estimators agree")

# %% [markdown]
# At $\mu=\sigma=1$ the numbers are small enough to remember. In (1.16) the pieces are $1+18+15=34$, $2\cdot4\cdot2(d-1)$ and $6(d-1)+4(d-1)^2$. Collect the powers of $d$:
#
# $$\operatorname{Var}_{\text{pathwise}} = 4, \qquad \operatorname{Var}_{\text{baseline}} = 6d + 12, \qquad \operatorname{Var}_{\text{no baseline}} = 4d^2 + 14d + 12 \tag{1.18}$$
#
# So as the dimension grows, the first stays where it is, the second grows like $d$, the third like $d^2$.
#
# For the check, hold $\varepsilon_1$ fixed first: then $\mathbb E[(f-b)^2 \mid \varepsilon_1] = \operatorname{Var}[R] + (z_1^2 + \mathbb E[R] - b)^2$, with both moments of $R$ from SciPy. Multiply by $\varepsilon_1^2$ and average over $\varepsilon_1$ by quadrature.

# %% tags=["eq-1.18", "nbval-check-output"]
print("   d  pathwise  baseline  no baseline")
for d in (1, 2, 10, 100):
    r_mean, r_var = stats.ncx2(d - 1, d - 1).stats() if d > 1 else (0.0, 0.0)
    pathwise = expect((2 * nodes) ** 2)
    z_squared = (1 + nodes) ** 2
    baseline = expect((r_var + (z_squared + r_mean - 2 * d) ** 2) * nodes**2) - 4
    no_baseline = expect((r_var + (z_squared + r_mean) ** 2) * nodes**2) - 4
    print(f"{d:4d} {pathwise:9.0f} {baseline:9.0f} {no_baseline:12.0f}")
    assert np.allclose([pathwise, baseline, no_baseline], [4, 6 * d + 12, 4 * d**2 + 14 * d + 12])

# %% [markdown]
# ## Measure what samples and dimensions do
#
# Nobody uses a single sample if more are cheap. The average of $N$ independent estimates, each of variance $V$, has
#
# $$\operatorname{Var}\left[\frac1N\sum_{i=1}^{N} g_i\right] = \frac{V}{N} \tag{1.19}$$
#
# because variances of independent terms add ($N\cdot V$) and the factor $\frac1N$ is squared. For a check, take pathwise estimates $2+2\varepsilon_i$, with $V=4$. Their average is normal. So if (1.19) holds,
# averages of $N$ must pass a Kolmogorov–Smirnov test against $\mathcal N(2, 4/N)$. Here are 500 averages for each $N$.

# %% tags=["eq-1.19"]
for N in (1, 10, 10_000):
    average = (2 + 2 * np.random.default_rng(6).standard_normal((500, N))).mean(axis=1)
    p_value = stats.kstest(average, stats.norm(2, np.sqrt(4 / N)).cdf).pvalue
    print(f"N = {N:6}: variance {average.var(ddof=1):.5f}, expected {4 / N:.5f}, KS p-value {p_value:.3f}")
    assert p_value > 1e-4

# %% [markdown]
# Now all three estimators. The tape is slow for so many samples, so this function uses the formulas: $2z_1$ for the pathwise estimate,
# $(f-b)\,\varepsilon_1/\sigma$ for the two others. An `assert` holds it to the tape's numbers from above.


# %%
def three_estimates(epsilon):
    """Estimates of the slope for mu_1 at mu = sigma = 1, one for each row of noise."""
    z = 1 + epsilon
    f = np.sum(z**2, axis=-1)
    score = epsilon[..., 0]
    return np.stack([2 * z[..., 0], (f - 2 * epsilon.shape[-1]) * score, f * score])


tape_says = np.stack([gradients[0].numpy()[:, 0] for gradients in estimates.values()])
assert np.allclose(three_estimates(epsilon), tape_says, rtol=1e-3, atol=1e-3)

# %% [markdown]
# A measured variance is itself random. If $n$ estimates have the variance $s^2$ and fourth central moment $m_4$, the standard error of $s^2$ is about
# $\sqrt{(m_4 - s^4)/n}$. We compute it from the same estimates and hold every point to the formula at the level $|z\text{-score}|<4$.


# %%
def variance_with_error(g):
    squares = (g - g.mean(axis=-1, keepdims=True)) ** 2
    n = g.shape[-1]
    return squares.sum(axis=-1) / (n - 1), squares.std(axis=-1) / np.sqrt(n)


# %% [markdown]
# First the dimension, with one sample per estimate. The printed $z$-scores compare measured and derived variances.

# %%
DIMS = np.array([1, 2, 5, 10, 20, 50, 100])
rng = np.random.default_rng(7)
by_dim = np.empty((2, 3, len(DIMS)))
for k, d in enumerate(DIMS):
    blocks = [three_estimates(rng.standard_normal((REPEATS // 10, d), dtype="float32")) for _ in range(10)]
    by_dim[:, :, k] = variance_with_error(np.concatenate(blocks, axis=-1).astype("float64"))
theory_dim = np.array([np.full(len(DIMS), 4.0), 6.0 * DIMS + 12, 4.0 * DIMS**2 + 14 * DIMS + 12])
dim_scores = (by_dim[0] - theory_dim) / by_dim[1]
for name, measured, scores in zip(estimates, by_dim[0], dim_scores, strict=True):
    print(f"{name:>18}: variance {measured[0]:5.1f} … {measured[-1]:8.1f}, z-scores {scores.round(1)}")
assert np.all(np.abs(dim_scores) < level)

# %% [markdown]
# Now the number of samples, from 1 to 10,000, in ten dimensions. The averages with large $N$ cost more, so they are repeated less often.

# %%
COUNTS = np.array([1, 10, 100, 1_000, 10_000])
by_count = np.empty((2, 3, len(COUNTS)))
rng = np.random.default_rng(8)
for k, N in enumerate(COUNTS):
    repeats = min(REPEATS // 10, 25 * REPEATS // N)
    block = min(repeats, max(1, 40_000 // N))  # averages per block: keeps the memory small
    shape = (block, N, 10)
    blocks = [three_estimates(rng.standard_normal(shape, "float32")).mean(axis=-1) for _ in range(repeats // block)]
    by_count[:, :, k] = variance_with_error(np.concatenate(blocks, axis=-1).astype("float64"))
theory_count = np.array([4.0, 72.0, 552.0])[:, None] / COUNTS
count_scores = (by_count[0] - theory_count) / by_count[1]
for name, measured, scores in zip(estimates, by_count[0], count_scores, strict=True):
    print(f"{name:>18}: variance {measured[0]:6.1f} … {measured[-1]:.5f}, z-scores {scores.round(1)}")
assert np.all(np.abs(count_scores) < level)

# %% mystnb={"figure": {"caption": "Three unbiased estimators of the same gradient of $\\mathbb{E}\\|z\\|^2$. Dots: measured, with bars of two standard errors. Lines: derived. More samples help all three alike; more dimensions hurt only the score function.", "name": "fig-01-wall"}, "image": {"alt": "Two log-log plots. Above, variance against the number of samples from 1 to 10,000: three parallel lines of slope minus 1. Below, variance against the dimension from 1 to 100: the pathwise line is flat at 4, the score function with baseline grows like d, without baseline like d squared."}}
fig, axes = plt.subplots(2, 1, figsize=(6, 8))
panels = [(axes[0], COUNTS, by_count, theory_count), (axes[1], DIMS, by_dim, theory_dim)]
for ax, x_axis, (measured, error), theory in panels:
    for row, name in enumerate(estimates):
        color, marker = (BLUE, GREEN, RED)[row], "osD"[row]
        ax.plot(x_axis, theory[row], color=color, lw=2)
        ax.errorbar(x_axis, measured[row], 2 * error[row], fmt=marker, color=color, ms=7, capsize=3, label=name)
    ax.set(xscale="log", yscale="log", ylabel="variance of the gradient")
    ax.grid(alpha=0.3)
    decades = 10 ** np.arange(0, np.log10(x_axis[-1]) + 1).astype(int)
    ax.set_xticks(decades, [f"{decade:,}" for decade in decades])
axes[0].set(xlabel="samples N (10 dimensions)", title="More samples: every line falls as 1/N")
axes[1].set(xlabel="dimensions d (1 sample)", title="More dimensions: flat, d, d²")
handles, labels = axes[0].get_legend_handles_labels()
axes[0].legend(handles[::-1], labels[::-1], frameon=False, fontsize=11, loc="lower left")
fig.tight_layout()
# %% [markdown]
# (The bars are there; most are smaller than the dots.) Above, three parallel lines: more samples help all three estimators by the same factor. Below, the pathwise line is flat, the one with a baseline climbs like $d$, and the one without like $d^2$.
#
# How many samples does the score function need to be as good as one pathwise sample? By (1.19) that number is the ratio of the variances (1.18):
#
# $$\frac{6d+12}{4} = \tfrac32 d + 3, \qquad \frac{4d^2+14d+12}{4} = d^2 + \tfrac72 d + 3 \tag{1.20}$$
#
# The check takes the ratios of *measured* variances. The error of a ratio combines the two relative errors.

# %% tags=["eq-1.20"]
ratio = by_dim[0, 1:] / by_dim[0, 0]
relative_error = by_dim[1] / by_dim[0]
ratio_error = ratio * np.hypot(relative_error[1:], relative_error[0])
derived = np.array([1.5 * DIMS + 3, DIMS**2 + 3.5 * DIMS + 3])
assert np.all(np.abs(ratio - derived) < level * ratio_error)
for k in (0, 3, 6):
    for row, name in enumerate(["   baseline", "no baseline"]):
        measured = f"{ratio[row, k]:8.1f} ± {ratio_error[row, k]:4.1f}"
        print(f"d = {DIMS[k]:3}, {name}: measured {measured}, derived {derived[row, k]:8.1f}")

# %% [markdown]
# **The factor in one sentence:** on $\mathbb E\|z\|^2$ at $\mu=\sigma=1$, the score function needs $d^2+\frac72d+3$ samples to match one pathwise sample, or
# $\frac32d+3$ with a baseline; at $d=100$ that is 10,353 samples, or 153.
#
# The reason can be read off the derivation. The pathwise estimate of the slope for $\mu_1$ asks how $f$ changes along coordinate 1. The score function
# only sees the *value* of $f$. Every other coordinate moves that value too, and all of this enters as noise.
#
# ## See where the pathwise gradient loses
#
# Is pathwise always better? Its variance depends on how steep $f$ is, that of the score function on how large $f$ is. So look at a function that is steep without being large:
# $f(z)=\sin(\omega z)$ with $z\sim\mathcal N(0,1)$. Its slope reaches $\omega$, and its size never exceeds 1.
#
# The pathwise estimate is $\omega\cos(\omega\varepsilon)$, the score-function estimate $\sin(\omega\varepsilon)\,\varepsilon$. (The baseline is $\mathbb E[f]=0$ here.) Both variances follow from
# $y(k)=\mathbb E[\cos k\varepsilon]$. Its derivative is $-\mathbb E[\varepsilon\sin k\varepsilon]$, and integration by parts, as for (1.12), turns that into $-k\,\mathbb E[\cos k\varepsilon]$. So $y' = -ky$ with $y(0)=1$, which is
# solved by $\mathbb E[\cos k\varepsilon]=e^{-k^2/2}$. Differentiate twice and change the sign: $\mathbb E[\varepsilon^2\cos k\varepsilon] = (1-k^2)\,e^{-k^2/2}$.
#
# Now use $\cos^2 u = \frac12(1+\cos2u)$, $\sin^2 u = \frac12(1-\cos 2u)$, set $k=2\omega$, and subtract the square of the mean $\omega e^{-\omega^2/2}$:
#
# $$\operatorname{Var}_{\text{pathwise}} = \tfrac12\,\omega^2\left(1-e^{-\omega^2}\right)^2, \qquad \operatorname{Var}_{\text{score}} = \tfrac12\left(1 - (1-4\omega^2)\,e^{-2\omega^2}\right) - \omega^2e^{-\omega^2} \tag{1.21}$$
#
# (For the first: $\frac12(1+e^{-2\omega^2}) - e^{-\omega^2}$ is the complete square $\frac12(1-e^{-\omega^2})^2$.) The check integrates the estimates and their squares.


# %% tags=["eq-1.21"]
def sine_variances(w):
    pathwise = 0.5 * w**2 * (1 - np.exp(-(w**2))) ** 2
    return pathwise, 0.5 * (1 - (1 - 4 * w**2) * np.exp(-2 * w**2)) - w**2 * np.exp(-(w**2))


def integrated_variance(g):
    return integrate_mean(lambda e: g(e) ** 2, 0.0, 1.0) - integrate_mean(g, 0.0, 1.0) ** 2


for omega in (0.3, 1.0, 3.0, 10.0):
    pathwise = integrated_variance(lambda e, w=omega: w * np.cos(w * e))
    score = integrated_variance(lambda e, w=omega: np.sin(w * e) * e)
    print(f"omega = {omega:4}: pathwise {pathwise:8.4f}, score function {score:.4f}")
    assert np.allclose([pathwise, score], sine_variances(omega), atol=1e-8)

# %% mystnb={"figure": {"caption": "Variance of both estimators for $f(z) = \\sin(\\omega z)$. Dots: measured. Lines: derived. For a fast wiggle the score function wins.", "name": "fig-01-crossover"}, "image": {"alt": "Log-log plot of variance against frequency omega from 0.3 to 10. The pathwise line starts lower, crosses the score-function line a little above 1 and rises to 50, while the score function levels off at one half."}}
omegas = np.geomspace(0.3, 10, 200)
crossing = optimize.brentq(lambda w: np.subtract(*sine_variances(w)), 0.5, 5)
rng = np.random.default_rng(9)
fig, ax = plt.subplots(figsize=(6.5, 3.8))
pathwise_line, score_line = sine_variances(omegas)
ax.plot(omegas, pathwise_line, color=BLUE, lw=2, label="pathwise")
ax.plot(omegas, score_line, color=RED, lw=2, label="score function")
for omega in (0.3, 0.6, 1.0, 2.0, 4.0, 10.0):
    e = rng.standard_normal(REPEATS)
    (path, score), errors = variance_with_error(np.stack([omega * np.cos(omega * e), np.sin(omega * e) * e]))
    assert np.all(np.abs(np.array([path, score]) - sine_variances(omega)) < level * errors)
    ax.plot([omega, omega], [path, score], "ko", markersize=5)
ax.axvline(crossing, color=GREY, ls=":", label=f"ω = {crossing:.2f}")
ax.set(xscale="log", yscale="log", xlabel="frequency ω", ylabel="variance of the gradient")
ax.set_xticks([0.3, 1, 3, 10], [0.3, 1, 3, 10])
ax.minorticks_off()
ax.legend(frameon=False)
print(f"the lines cross at omega = {crossing:.2f}; at omega = 10 the ratio is {np.divide(*sine_variances(10.0)):.0f}")

# %% [markdown]
# Up to $\omega=1.11$ the pathwise gradient is the quieter one. At $\omega=10$ its variance is 100 times that of the score function.
# And when $f$ has a jump, the pathwise gradient is wrong even on average: equation (1.6) needs an $f$ without jumps. Exercise 5 shows that.
#
# In a VAE, $f$ is a neural network followed by a smooth loss: no jumps, and $d$ may be large. As long as $f$ wiggles slowly over the width $\sigma$, that is the pathwise estimator's home ground.
#
# ## Draw fresh noise for every example
#
# A batch holds $B$ examples, and the gradient is averaged over them. What if all examples of a batch share one $\varepsilon$? It saves random numbers, and a
# layer that draws noise of shape `(1, latent_dim)` does it without complaint: the shape broadcasts.
#
# Each example still sees a standard normal $\varepsilon$. So each term of the average has the right mean, and the mean of a sum needs no independence: shared noise is unbiased too.
# Its variance is another matter. Write $g_i$ for the gradient from example $i$, $\bar v$ for the average of its variance over the batch, and $\bar c$ for the average covariance over pairs of different examples.
# The variance of a sum is the sum of all $B$ variances and all $B(B-1)$ covariances. Divide by $B^2$:
#
# $$\operatorname{Var}\left[\frac1B\sum_{i=1}^{B} g_i\right] = \frac{\bar v}{B} + \left(1-\frac1B\right)\bar c \tag{1.22}$$
#
# The check makes 50 rows of 6 dependent numbers. The left side is the variance of the row means; the right side reads $\bar v$ and $\bar c$ from NumPy's covariance matrix.

# %% tags=["eq-1.22"]
B, rng = 6, np.random.default_rng(10)
rows = rng.standard_normal((50, B)) @ rng.standard_normal((B, B))
C = np.cov(rows.T)
v_bar = np.trace(C) / B
c_bar = C[~np.eye(B, dtype=bool)].mean()
assert np.isclose(rows.mean(axis=1).var(ddof=1), v_bar / B + (1 - 1 / B) * c_bar)

# %% [markdown]
# With fresh noise $\bar c = 0$ and the variance falls as $1/B$. With shared noise the second term stays: as the batch grows, the variance approaches $\bar c$.
#
# For numbers we need examples. Take one latent dimension, $f(z)=z^2$, $\sigma_i=1$, and means $\mu_i$ that alternate between $+2$ and $-2$.
# The parameters are two biases that all examples share: one is added to every $\mu_i$, the other to every $\log\sigma_i^2$. The bias of a `Dense` layer is such a parameter.
# For the first bias, $g_i = 2z_i = 2\mu_i+2\varepsilon_i$. With shared noise the random parts $2\varepsilon$ are identical, so $\bar v = \bar c = 4$.
# For the second, (1.4) gives $g_i = 2z_i\cdot\frac12\varepsilon_i = \mu_i\varepsilon_i + \varepsilon_i^2$. With (1.12), $\operatorname{Var}[\varepsilon^2]=3-1=2$ and $\operatorname{Cov}[\varepsilon,\varepsilon^2]=0$, so
#
# $$\operatorname{Var}[g_i] = \mu_i^2 + 2, \qquad \operatorname{Cov}[g_i, g_j] = \mu_i\mu_j + 2 \quad\text{(shared noise)} \tag{1.23}$$
#
# The check starts from $2z_i\cdot\frac12\varepsilon_i$; its first pair has $i=j$.

# %% tags=["eq-1.23"]
for m_i, m_j in [(2.0, 2.0), (2.0, -2.0), (0.3, -1.0)]:
    g_i, g_j = (2 * (m + nodes) * 0.5 * nodes for m in (m_i, m_j))
    covariance = expect(g_i * g_j) - expect(g_i) * expect(g_j)
    assert np.isclose(covariance, m_i * m_j + 2)

# %% [markdown]
# Over an even batch the $\mu_i$ sum to 0. Averaging (1.23) over all pairs, $i=j$ included, leaves 2. So for the second bias we expect: fresh noise $6/B$, shared noise 6 at $B=1$ and then 2, however large the batch.
# For the first bias: fresh noise $4/B$, shared noise 4 for every $B$. Now measure, with the tape. Each repetition has its own copy of the two biases.


# %%
def batch_gradients(batch_size, shared, repeats, seed):
    epsilon = np.random.default_rng(seed).standard_normal((repeats, 1 if shared else batch_size))
    means = np.resize([2.0, -2.0], batch_size)
    mean_bias, log_var_bias = tf.zeros((repeats, 1), "float64"), tf.zeros((repeats, 1), "float64")
    with tf.GradientTape() as tape:
        tape.watch([mean_bias, log_var_bias])
        z = reparameterize(means + mean_bias, log_var_bias, epsilon)
        loss = tf.reduce_mean(z**2, axis=1)
    return np.stack([g.numpy()[:, 0] for g in tape.gradient(loss, [mean_bias, log_var_bias])])


# %%
BATCHES = np.array([1, 2, 4, 16, 64, 256])
by_batch = {}
for kind in ("fresh", "shared"):
    gradients = [batch_gradients(B, kind == "shared", REPEATS // 20, seed=B) for B in BATCHES]
    truth = np.array([[4.0, 1.0]] + [[0.0, 1.0]] * 5)
    scores = [
        (g.mean(axis=1) - t) / (g.std(axis=1) / np.sqrt(REPEATS // 20)) for g, t in zip(gradients, truth, strict=True)
    ]
    print(f"{kind:>6} noise: largest |z-score| of the mean {np.abs(scores).max():.2f}")
    assert np.all(np.abs(scores) < level)
    by_batch[kind] = np.array([variance_with_error(g) for g in gradients]).transpose(1, 2, 0)

# %% [markdown]
# Both are unbiased. (The true slopes are the batch averages of (1.8): $2\mu_i$ averages to 4 for the single example $\mu_1=2$ and to 0 for an even batch, $\sigma_i^2$ to 1.) Now the variances, against the formula:

# %%
theory = {
    "fresh": np.array([4 / BATCHES, 6 / BATCHES]),
    "shared": np.array([4 + 0 * BATCHES, 2 + 4.0 * (BATCHES == 1)]),
}
print("variance at B =", BATCHES)
for kind in theory:
    measured, error = by_batch[kind]
    print(f"{kind:>6} noise, bias of mu:     ", measured[0].round(3))
    print(f"{kind:>6} noise, bias of log var:", measured[1].round(3))
    assert np.all(np.abs(measured - theory[kind]) < level * error)
for name, variances in [("measured", {k: v[0] for k, v in by_batch.items()}), ("derived", theory)]:
    print(f"shared / fresh at B = 256, {name:>8}:", (variances["shared"] / variances["fresh"])[:, -1].round())

# %% mystnb={"figure": {"caption": "Variance of the gradient against the batch size. With one $\\varepsilon$ for the whole batch it stops falling. Dots: measured. Lines: equation (1.22).", "name": "fig-01-shared"}, "image": {"alt": "Log-log plot against the batch size from 1 to 256. With fresh noise two lines fall as 1 over B. With shared noise one line stays at 4 and the other stays at 2 after the first step."}}
fig, ax = plt.subplots(figsize=(6.5, 4.2))
for kind, color in [("shared", RED), ("fresh", BLUE)]:
    measured, error = by_batch[kind]
    for row, (parameter, style, marker) in enumerate([("μ", "-", "o"), ("log σ²", "--", "s")]):
        look, label = {"color": color, "ls": style, "lw": 1.8}, f"{kind} noise, bias of {parameter}"
        ax.plot(BATCHES, theory[kind][row], **look)
        ax.errorbar(BATCHES, measured[row], 2 * error[row], fmt=marker, color=color, capsize=3, label=label)
ax.set(xscale="log", yscale="log", xlabel="batch size B (examples)", ylabel="variance of the gradient")
ax.set_xticks(BATCHES, BATCHES)
ax.set_yticks([0.02, 0.1, 0.5, 2, 4], [0.02, 0.1, 0.5, 2, 4])
ax.minorticks_off()
_ = ax.legend(frameon=False, fontsize=10)
# %% [markdown]
# The two lines of fresh noise fall as $1/B$. Those of shared noise don't: from $B=2$ on, more examples change nothing. At $B=256$, by the formulas, sharing makes the variance 256 times as large for the first bias and 85 times for the second. The measured ratios are printed above.
#
# Sharing is not always this bad. Equation (1.22) says that all depends on $\bar c$: if the examples pull a weight in opposite directions, their noise cancels. Exercise 4 shows such a weight.
# You can't count on that, and fresh noise costs one random number per example and latent coordinate. `Sampling` draws noise of the shape of `z_mean`, batch axis included.
#
# ## Draw many samples with an explicit noise input
#
# Sometimes you want several $z$ for each example: to lower the variance, or for the bounds of later chapters. And sometimes you want to choose the noise yourself. Both come from one move: make `epsilon` an input of the model.
#
# Per example, `z_mean` has the shape `(latent_dim,)` and `epsilon` the shape `(num_samples, latent_dim)`. Keras puts the batch axis in front of each.
# To combine them, `z_mean` and `z_sigma` need an axis of length 1 in the place of the samples. Then broadcasting repeats them along it. With $b$ for the example, $s$ for the sample and $j$ for the coordinate:
#
# $$z_{bsj} = \mu_{bj} + \sigma_{bj}\,\varepsilon_{bsj} \tag{1.24}$$
#
# Here it is from Keras' standard layers alone. `Rescaling` halves the log-variance, `Activation` takes the exponential, `Multiply` and `Add` do the trick.


# %%
def monte_carlo_model(num_samples, latent_dim):
    z_mean = keras.Input((latent_dim,), name="z_mean")
    z_log_var = keras.Input((latent_dim,), name="z_log_var")
    epsilon = keras.Input((num_samples, latent_dim), name="epsilon")

    z_sigma = layers.Activation("exponential")(layers.Rescaling(0.5)(z_log_var))
    mean_row = layers.Reshape((1, latent_dim), name="mean_row")(z_mean)
    sigma_row = layers.Reshape((1, latent_dim), name="sigma_row")(z_sigma)
    z = layers.Add(name="z")([mean_row, layers.Multiply()([sigma_row, epsilon])])
    return keras.Model([z_mean, z_log_var, epsilon], z)


# %% tags=["nbval-check-output"]
num_samples, latent_dim = 3, 2
monte_carlo = monte_carlo_model(num_samples, latent_dim)
for name in ("z_mean", "sigma_row", "epsilon", "z"):
    print(f"{name:>9}: {monte_carlo.get_layer(name).output.shape}")
print("parameters:", monte_carlo.count_params())

# %% [markdown]
# `None` is the batch size. The 1 in `sigma_row` stretches to 3, the number of samples. The same in a picture, with all shapes:

# %% mystnb={"figure": {"caption": "The trick with shapes. B examples, S samples for each, J latent dimensions. Broadcasting stretches the axis of length 1 to S.", "name": "fig-01-shapes"}, "image": {"alt": "Diagram with shapes. z_log_var of shape B, J goes through exp of half and a reshape to B, 1, J and is multiplied with epsilon of shape B, S, J. z_mean of shape B, J is reshaped to B, 1, J and added. The result z has shape B, S, J."}}
fig, ax = plt.subplots(figsize=(6.8, 5.2))
ax.set(xlim=(-0.9, 6.6), ylim=(-0.5, 4.9))
ax.axis("off")
boxes = [
    ("z_mean\n(B, J)", 0, 3, BLUE), ("Reshape\n(B, 1, J)", 3.8, 3, GREY), ("Add\n(B, S, J)", 5.7, 3, GREEN), ("z\n(B, S, J)", 5.7, 4.4, GREY),
    ("z_log_var\n(B, J)", 0, 1.5, BLUE), ("exp(½ ·)\n(B, J)", 1.9, 1.5, GREY), ("Reshape\n(B, 1, J)", 3.8, 1.5, GREY),
    ("Multiply\n(B, S, J)", 5.7, 1.5, GREEN), ("epsilon\n(B, S, J)", 5.7, 0, ORANGE),
]  # fmt: skip
for text, x, y, color in boxes:
    node(ax, x, y, text, color)
for start, end in [(0, 1), (4, 5), (5, 6), (6, 7), (1, 2)]:
    arrow(ax, (boxes[start][1] + 0.63, boxes[start][2]), (boxes[end][1] - 0.63, boxes[end][2]), gap=0)
for start, end in [(8, 7), (7, 2), (2, 3)]:
    arrow(ax, (5.7, boxes[start][2] + 0.36), (5.7, boxes[end][2] - 0.36), gap=0)
for y in (3, 1.5):
    ax.text(4.75, y + 0.45, "1 → S", color=GREEN, ha="center", fontsize=11)
fig.tight_layout()
# %% [markdown]
# Does it compute (1.24)? The second way is three nested Python loops, over every example, sample and coordinate.

# %% tags=["eq-1.24"]
rng = np.random.default_rng(12)
means = rng.normal(size=(4, latent_dim)).astype("float32")
log_vars = rng.normal(size=(4, latent_dim)).astype("float32")
noise = rng.standard_normal((4, num_samples, latent_dim), dtype="float32")
z_model = monte_carlo([means, log_vars, noise]).numpy()
for b in range(4):
    for s in range(num_samples):
        for j in range(latent_dim):
            by_hand = means[b, j] + np.sqrt(np.exp(log_vars[b, j])) * noise[b, s, j]
            assert np.isclose(z_model[b, s, j], by_hand, rtol=1e-5)
print(z_model.shape, "all", z_model.size, "entries agree")

# %% [markdown]
# And the `Sampling` layer? It takes its shape from `z_mean`, so repeat each mean and log-variance `num_samples` times. To feed the model the layer's own noise, draw it from a `SeedGenerator` with the layer's seed.

# %%
generator = keras.random.SeedGenerator(7)
noise = keras.random.normal((4, num_samples, latent_dim), seed=generator).numpy()
repeated = [np.repeat(parameter[:, None, :], num_samples, axis=1) for parameter in (means, log_vars)]
z_layer = Sampling(seed=7)(repeated)
assert np.allclose(z_layer, monte_carlo([means, log_vars, noise]), rtol=1e-6, atol=1e-6)

# %% [markdown]
# The same noise, the same samples. There is one more order of axes to know. With `reparameterize` the samples go in **front**: noise of shape `(num_samples, batch, latent_dim)` broadcasts against `(batch, latent_dim)`
# with no reshape, because NumPy's rule compares shapes from the right. The numbers are the same, with two axes swapped.

# %%
samples_first = reparameterize(means, log_vars, np.swapaxes(noise, 0, 1))
assert samples_first.shape == (num_samples, 4, latent_dim)
assert np.allclose(np.swapaxes(samples_first, 0, 1), z_layer, rtol=1e-6, atol=1e-6)

# %% [markdown]
# Broadcasting seldom complains, so here is a slip to look out for. The means are repeated for each sample, and the noise has only the shape of the batch. The result has the right shape. Look at the first example's three samples.

# %%
slip = reparameterize(np.tile(means, (num_samples, 1, 1)), log_vars, noise[:, 0])
print(slip.shape, "\n", slip[:, 0].numpy().round(3))
assert np.array_equal(slip[0], slip[1])

# %% [markdown]
# Three times the same sample. Before you trust an average over samples, print the shape of the noise.
#
# Last, measure that more samples per example lower the variance through this model as well. By (1.13) and (1.19) it should be $4\sigma^2/S$ for $S$ samples, here with $\mu=\sigma=1$.
# As before, each example holds its own copy of the parameters, so that each row of the gradient is one estimate.


# %%
def variance_through_model(num_samples, repeats):
    model = monte_carlo_model(num_samples, latent_dim)
    mean, log_var = tf.ones((repeats, latent_dim)), tf.zeros((repeats, latent_dim))
    noise = np.random.default_rng(13).standard_normal((repeats, num_samples, latent_dim), dtype="float32")
    with tf.GradientTape() as tape:
        tape.watch(mean)
        z = model([mean, log_var, tf.constant(noise)])
        f = tf.reduce_mean(tf.reduce_sum(z**2, axis=-1), axis=1)
    return variance_with_error(tape.gradient(f, mean).numpy()[:, 0].astype("float64"))


# %%
print("samples  variance ± standard error  derived  z-score")
for S in (1, 10, 100):
    measured, error = variance_through_model(S, REPEATS // 40)
    print(f"{S:7} {measured:9.4f} ± {error:.4f} {4 / S:17.4f} {(measured - 4 / S) / error:8.2f}")
    assert abs(measured - 4 / S) < level * error

# %% [markdown]
# A hundred samples, a hundredth of the variance.
#
# ## In this notebook
#
# - A sample from a closed box has no gradient: the tape says `None`, and a difference quotient with fresh luck spreads ten times wider for each ten times smaller $h$. With the luck held fixed, the slope is exactly 1.
# - $z=\mu+\sigma\odot\varepsilon$ has the right distribution (five moments at $|z\text{-score}|<4$, two Kolmogorov–Smirnov tests at level $10^{-4}$), and slopes 1, $\varepsilon$ and, in $\log\sigma^2$, $\frac12\sigma\varepsilon$.
# - In float32 `exp(z_log_var / 2)` works from −174.6 to 177.4, the square root of the exponential only from −87.2 to 88.6, and its gradient at ±120 is `nan`.
# - On $\mathbb E\|z\|^2$ at $\mu=\sigma=1$ three unbiased estimators have the variances 4, $6d+12$ and $4d^2+14d+12$. At $d=100$: 4, 612 and 41,412. Averaging $N$ samples divides each by $N$.
# - For $\sin(\omega z)$ the score function wins from $\omega=1.11$ on; at $\omega=10$ by a factor of 100.
# - Noise shared across the batch is unbiased, but its variance stays at 4 (or 2), where fresh noise gives $4/B$ (or $6/B$).
# - With `epsilon` as an input of shape `(num_samples, latent_dim)`, `Multiply` and `Add` make the same $z$ as `Sampling` with the same noise.
# - A `SeedGenerator` gives new noise at each call, repeatably. An integer seed gives the same noise at each call.

# %% [markdown]
# ## Exercises
#
# Each exercise has a statement, a cell for your answer, and a cell that checks it. The solutions are folded up below the checks.
#
# ### Exercise 1: change what the network outputs
#
# A network outputs $\log\sigma$ in place of $\log\sigma^2$. Write the trick for it.


# %% tags=["exercise"]
def sample_from_log_sigma(mean, log_sigma, epsilon):
    # Your code here: return z.
    return None


# %% tags=["exercise-check"]
def check_1(answer):
    log_sigma = np.log([1.0, 3.0])
    z = answer(np.array([0.0, 1.0]), log_sigma, np.array([2.0, -1.0]))
    assert z is not None, "Return z."
    assert np.allclose(z, [2.0, -2.0]), (
        f"With sigma = (1, 3) z should be [2, -2], not {np.asarray(z)}. Is there a ½ too many?"
    )
    print("Exercise 1: right.")


if sample_from_log_sigma(0.0, 0.0, 0.0) is None:
    print("Exercise 1: your turn.")
else:
    check_1(sample_from_log_sigma)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The ½ in (1.3) came from the square in $\sigma^2$. Without the square it goes.
#
# ```python
# def sample_from_log_sigma(mean, log_sigma, epsilon):
#     return mean + np.exp(log_sigma) * epsilon
# ```
#
# </details>
#
# ### Exercise 2: find the best baseline
#
# Equation (1.11) holds for every constant $b$. Which $b$ gives the smallest variance of $(f-b)\,\varepsilon_1/\sigma$ for $f=\|z\|^2$, with every $\mu_j=\mu$ and $\sigma_j=\sigma$, in `dim` dimensions?
# It isn't the mean of $f$. Hint: write $\mathbb E[(f-b)^2\varepsilon_1^2]$ as a parabola in $b$; you need $\mathbb E[f\varepsilon_1^2]$, for which (1.14) and (1.15) have the pieces.


# %% tags=["exercise"]
def best_baseline(mu, sigma, dim):
    # Your code here: return a number.
    return None


# %% tags=["exercise-check"]
def check_2(answer):
    assert answer(1.0, 1.0, 1) is not None, "Return a number."
    x, w = np.polynomial.hermite_e.hermegauss(8)
    chance = np.outer(w, w) / (2 * np.pi)
    for mu, sigma in [(1.0, 1.0), (0.5, 2.0)]:
        f = (mu + sigma * x[:, None]) ** 2 + (mu + sigma * x) ** 2
        second_moment = [
            np.sum(chance * ((f - b) * x[:, None]) ** 2) for b in answer(mu, sigma, 2) + np.array([-0.1, 0.0, 0.1])
        ]
        assert np.argmin(second_moment) == 1, f"At mu = {mu}, sigma = {sigma}, dim = 2 a baseline 0.1 away is better."
    assert np.isclose(answer(1.0, 1.0, 10) - answer(1.0, 1.0, 9), 2.0), "How does it grow with the dimension?"
    print("Exercise 2: right.")


if best_baseline(1.0, 1.0, 1) is None:
    print("Exercise 2: your turn.")
else:
    check_2(best_baseline)

# %% [markdown]
# <details><summary>Solution</summary>
#
# $\mathbb E[(f-b)^2\varepsilon_1^2] = \mathbb E[f^2\varepsilon_1^2] - 2b\,\mathbb E[f\varepsilon_1^2] + b^2$, because $\mathbb E[\varepsilon_1^2]=1$. A parabola in $b$, lowest at $b=\mathbb E[f\varepsilon_1^2]$.
# With $f=A+R$ that is $\mu^2+3\sigma^2+(d-1)(\mu^2+\sigma^2) = d(\mu^2+\sigma^2)+2\sigma^2$: the mean of $f$ plus $2\sigma^2$. The gain over $b=\mathbb E[f]$ is $(2\sigma^2)^2/\sigma^2 = 4\sigma^2$.
#
# ```python
# def best_baseline(mu, sigma, dim):
#     return dim * (mu**2 + sigma**2) + 2 * sigma**2
# ```
#
# </details>
#
# ### Exercise 3: get a baseline for free
#
# In practice nobody knows $\mathbb E[f]$. With $N$ samples you can estimate it from the samples themselves. But a baseline that contains the sample's own $f_i$ is not a constant, and the estimate becomes biased. The cure:
# for sample $i$, use the mean of the **other** $N-1$ values. Given arrays `f` and `score` of shape `(repeats, N)`, return for each repeat the average over $i$ of $(f_i - b_i)\cdot\text{score}_i$.


# %% tags=["exercise"]
def leave_one_out(f, score):
    # Your code here: return an array of shape (repeats,).
    return None


# %% tags=["exercise-check"]
def check_3(answer):
    f, score = np.array([[1.0, 2.0, 6.0]]), np.array([[1.0, -1.0, 2.0]])
    assert answer(f, score) is not None, "Return an array."
    assert np.shape(answer(f, score)) == (1,), "Return one number for each repeat."
    by_hand = ((1 - 4) * 1 + (2 - 3.5) * -1 + (6 - 1.5) * 2) / 3
    assert np.isclose(answer(f, score)[0], by_hand), "Does the baseline of sample i contain sample i?"
    epsilon = np.random.default_rng(20).standard_normal((50_000, 4))
    estimate = answer((1 + epsilon) ** 2, epsilon)
    z_score = (estimate.mean() - 2.0) / (estimate.std() / np.sqrt(len(estimate)))
    assert abs(z_score) < 4, f"Biased: the mean is {estimate.mean():.3f}, and should be 2."
    print("Exercise 3: right.")


if leave_one_out(np.ones((1, 2)), np.ones((1, 2))) is None:
    print("Exercise 3: your turn.")
else:
    check_3(leave_one_out)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The sum of the others is the sum of all minus one's own.
#
# ```python
# def leave_one_out(f, score):
#     n = f.shape[1]
#     others = (f.sum(axis=1, keepdims=True) - f) / (n - 1)
#     return np.mean((f - others) * score, axis=1)
# ```
#
# </details>
#
# ### Exercise 4: find a weight that doesn't mind shared noise
#
# In the section on shared noise the parameter was a bias. Now take a weight $w$ with $\mu_i = w\,x_i$ for inputs $x_i$, a fixed $\sigma$, $f(z)=z^2$, and the loss averaged over the batch.
# Return the variance of the gradient with respect to $w$, over the noise alone, for shared and for fresh noise. Then try an `x` whose entries sum to 0.


# %% tags=["exercise"]
def weight_gradient_variance(x, sigma, shared):
    # Your code here: return a number.
    return None


# %% tags=["exercise-check"]
def check_4(answer):
    assert answer(np.ones(2), 1.0, True) is not None, "Return a number."
    epsilon = np.random.default_rng(21).standard_normal((40_000, 3))
    for x in (np.array([1.0, 2.0, -3.0]), np.array([0.5, 1.0, 2.0])):
        for shared in (True, False):
            noise = epsilon[:, :1] if shared else epsilon
            measured = np.var(np.mean(2 * (0.7 * x + 1.5 * noise) * x, axis=1))
            claimed = answer(x, 1.5, shared)
            assert np.isclose(claimed, measured, rtol=0.04, atol=1e-9), (
                f"x = {x}, shared = {shared}: measured {measured:.2f}, not {claimed:.2f}."
            )
    print("Exercise 4: right.")


if weight_gradient_variance(np.ones(2), 1.0, True) is None:
    print("Exercise 4: your turn.")
else:
    check_4(weight_gradient_variance)

# %% [markdown]
# <details><summary>Solution</summary>
#
# $g_i = 2z_ix_i$, whose random part is $2\sigma x_i\varepsilon_i$. Shared: the average is $2\sigma\bar x\,\varepsilon$, with variance $4\sigma^2\bar x^2$, which is 0 when the $x_i$ sum to 0. Fresh: independent terms, $4\sigma^2\sum_i x_i^2/B^2$.
# Pixels are never negative, so a weight on raw pixels is no such lucky case.
#
# ```python
# def weight_gradient_variance(x, sigma, shared):
#     if shared:
#         return 4 * sigma**2 * np.mean(x) ** 2
#     return 4 * sigma**2 * np.sum(x**2) / len(x) ** 2
# ```
#
# </details>
#
# ### Exercise 5: differentiate a probability
#
# Let $f(z)=1$ if $z>0$ and 0 otherwise, so that $\mathbb E[f]$ is the probability of $z>0$. Its slope in $\mu$ is not 0, but $f'$ is 0 wherever it exists: the pathwise estimate is 0 for every sample.
# Return estimates of the slope that are right on average, one for each entry of `epsilon`.


# %% tags=["exercise"]
def slope_of_probability(mu, sigma, epsilon):
    # Your code here: return an array shaped like epsilon.
    return None


# %% tags=["exercise-check"]
def check_5(answer):
    epsilon = np.random.default_rng(22).standard_normal(100_000)
    for mu, sigma in [(0.5, 1.0), (-1.0, 2.0)]:
        estimate = answer(mu, sigma, epsilon)
        assert estimate is not None, "Return an array."
        assert np.shape(estimate) == epsilon.shape, "Return one estimate for each entry of epsilon."
        truth = stats.norm.pdf(mu / sigma) / sigma
        error = np.std(estimate) / np.sqrt(len(epsilon))
        assert abs(np.mean(estimate) - truth) < 4 * error + 1e-12, (
            f"The mean is {np.mean(estimate):.4f}, the slope {truth:.4f}."
        )
    print("Exercise 5: right.")


if slope_of_probability(0.0, 1.0, np.zeros(1)) is None:
    print("Exercise 5: your turn.")
else:
    check_5(slope_of_probability)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The score function never differentiates $f$. The probability is $\Phi(\mu/\sigma)$, with slope $\frac1\sigma$ times the normal density at $\mu/\sigma$: that is what the check compares with.
#
# ```python
# def slope_of_probability(mu, sigma, epsilon):
#     f = (mu + sigma * epsilon > 0).astype("float64")
#     return f * epsilon / sigma
# ```
#
# </details>
#
# ### Exercise 6: reparameterize another distribution
#
# The trick isn't tied to the normal distribution. Let `u` be uniform on (0, 1). Turn it into a sample of the exponential distribution with mean $\exp(a)$, whose cumulative distribution is $1-\exp(-z\,e^{-a})$, such that TensorFlow can differentiate $z$ with respect to $a$ = `log_mean`.


# %% tags=["exercise"]
def sample_exponential(log_mean, u):
    # Your code here: return z, made of TensorFlow operations.
    return None


# %% tags=["exercise-check"]
def check_6(answer):
    u = tf.constant(np.random.default_rng(23).uniform(size=5_000))
    log_mean = tf.constant(np.log(3.0))
    with tf.GradientTape() as tape:
        tape.watch(log_mean)
        z = answer(log_mean, u)
        assert z is not None, "Return z."
        mean = tf.reduce_mean(z)
    p_value = stats.kstest(np.asarray(z), stats.expon(scale=3.0).cdf).pvalue
    assert p_value > 1e-4, f"Not exponential with mean 3: KS p-value {p_value:.1e}, mean {mean:.3f}."
    slope = tape.gradient(mean, log_mean)
    assert slope is not None, "TensorFlow finds no path from z to log_mean."
    assert np.isclose(slope, mean), "E[z] = exp(a) is its own derivative; so is every z here."
    print("Exercise 6: right.")


if sample_exponential(0.0, 0.5) is None:
    print("Exercise 6: your turn.")
else:
    check_6(sample_exponential)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Set the cumulative distribution equal to $u$ and solve for $z$: $z = -e^{a}\log(1-u)$.
#
# ```python
# def sample_exponential(log_mean, u):
#     return -tf.exp(log_mean) * tf.math.log(1.0 - u)
# ```
#
# </details>

# %% [markdown]
# ## Further reading
#
# - D. P. Kingma and M. Welling, [Auto-Encoding Variational Bayes](https://arxiv.org/abs/1312.6114), 2014. The trick, in section 2.4, and the autoencoder built on it.
# - D. J. Rezende, S. Mohamed and D. Wierstra, [Stochastic Backpropagation and Approximate Inference in Deep Generative Models](https://arxiv.org/abs/1401.4082), 2014. The same idea, found independently.
# - R. J. Williams, [Simple statistical gradient-following algorithms for connectionist reinforcement learning](https://doi.org/10.1007/BF00992696), 1992. REINFORCE, the score-function estimator, with baselines.
# - S. Mohamed, M. Rosca, M. Figurnov and A. Mnih, [Monte Carlo Gradient Estimation in Machine Learning](https://arxiv.org/abs/1906.10652), 2020. A survey of both estimators and their relatives, with examples where each one wins.
# - D. P. Kingma, T. Salimans and M. Welling, [Variational Dropout and the Local Reparameterization Trick](https://arxiv.org/abs/1506.02557), 2015. Equation (1.22) and its covariance, for noise on weights that a whole batch shares.
# - W. Kool, H. van Hoof and M. Welling, [Buy 4 REINFORCE Samples, Get a Baseline for Free!](https://openreview.net/forum?id=r1lgTGL5DE), 2019. Exercise 3.
# - M. Figurnov, S. Mohamed and A. Mnih, [Implicit Reparameterization Gradients](https://arxiv.org/abs/1805.08498), 2018. Gamma, beta and other distributions for which Exercise 6's recipe has no closed form.
# - E. Jang, S. Gu and B. Poole, [Categorical Reparameterization with Gumbel-Softmax](https://arxiv.org/abs/1611.01144), 2017. What to do about coin flips.

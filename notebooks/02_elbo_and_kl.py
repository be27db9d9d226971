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
# # Derive the ELBO and check every line of it
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/every-equation-executed/vae/blob/main/notebooks/02_elbo_and_kl.ipynb)
#
# **What you'll do.** Derive the loss of a variational autoencoder line by line, and run a check of each line.
#
# **What you'll learn**
# - to write down a latent-variable model, and to say why its likelihood is out of reach;
# - to measure the difference of two densities by the KL divergence, and to pick its direction;
# - to derive the evidence lower bound (ELBO) in two ways, with the right signs;
# - to derive the KL term of the loss, and to check it by four methods;
# - to test all of it on a VAE that can be solved with pencil and paper;
# - to turn a likelihood into a loss without reweighting the KL term by accident.
#
# **What you'll need.** NumPy, first-year probability (density, expectation, Gaussian); matrices and eigenvectors for the
# linear VAE in the middle; chapter 01 if you want to know how the network's gradients are sampled. No GPU. MNIST is downloaded if it isn't on your
# disk; with no network, digits from scikit-learn stand in for it, with other numbers than the text's.
#
# **Time.** About 40 minutes to read, 15 to 40 seconds to run on two cores. The quick mode changes nothing here.

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
import sympy
import tensorflow as tf
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from scipy.stats import bernoulli, multivariate_normal, norm

from vae_utils.datasets import load_mnist
from vae_utils.distributions import bernoulli_log_prob, gaussian_kl, gaussian_log_prob
from vae_utils.evaluation import reconstruction_floor

tf.get_logger().setLevel("ERROR")  # training one model after another is no reason to warn

# %% [markdown]
# Three colours that a colour-blind reader can tell apart, and a readable font:

# %%
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"
plt.rcParams.update({"font.size": 12, "figure.figsize": (7, 3.6), "axes.spines.top": False})
plt.rcParams.update({"axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 2})

# %% [markdown]
# ## Meet a model with a hidden cause
#
# You see an image $x$. You don't see what made it: which digit was meant, how the hand slanted, how wide the pen was.
# A **latent-variable model** gives these hidden causes a name, $z$, and two ingredients:
#
# - a **prior** $p(z)$: how likely each cause is before you see anything. Ours is the standard normal.
# - a **decoder** $p_\theta(x \mid z)$: what each cause produces. Its parameters are θ. In a VAE it is a neural network.
#
# To see every quantity exactly, we begin with one number in and one number out. The prior is $z \sim \mathcal N(0, 1)$.
# The decoder is $x \mid z \sim \mathcal N(z^2 + a z,\; 0.5^2)$; its one parameter θ is the slope $a = 0.5$. We observe
# $x = 1.5$. Which $z$ made it?
#
# We need one function: the log-density of a Gaussian. We give it the log-*variance*, as in the rest of the series.


# %%
def log_normal(z, mean, log_var):
    """Log-density of N(mean, exp(log_var)) at z, one number per element, in nats."""
    return -0.5 * (np.log(2 * np.pi) + log_var + (z - mean) ** 2 * np.exp(-log_var))


points = np.linspace(-3, 3, 13)
np.testing.assert_allclose(log_normal(points, 0.5, np.log(4.0)), norm.logpdf(points, 0.5, 2.0))
np.testing.assert_allclose(
    log_normal(points, 0.5, np.log(4.0)),
    gaussian_log_prob(points[:, None], np.array([0.5]), np.log([4.0])),
)

# %% [markdown]
# It agrees with SciPy and with `vae_utils` (which adds up the log-densities of a vector). Now the model itself. The
# **joint** density is decoder times prior, so its log is a sum:

# %%
X_OBSERVED = 1.5


def log_decoder(z, x=X_OBSERVED, slope=0.5):  # variance 0.5² = 0.25
    return log_normal(x, z**2 + slope * z, np.log(0.25))


def log_joint(z, x=X_OBSERVED, slope=0.5):
    return log_decoder(z, x, slope) + log_normal(z, 0.0, 0.0)


# %% [markdown]
# ### Add up the causes: the evidence
#
# How probable is $x$ under this model? Every $z$ may have made it, so we add up all of them, each weighted by its prior:
#
# $$p_\theta(x) = \int p_\theta(x \mid z)\, p(z)\, dz \tag{2.1}$$
#
# This is the **evidence** (or marginal likelihood). The factor $p(z)$ matters: without it, you count causes that never
# occur as much as those that do.
#
# With one latent dimension we can compute the integral on a grid (the trapezoidal rule). As a check, we compute it a
# second way: draw causes from the prior and average $p(x \mid z)$.

# %% tags=["eq-2.1", "nbval-check-output"]
z_grid = np.linspace(-8, 8, 4001)


def integrate(values):
    return np.trapezoid(values, z_grid)


evidence = integrate(np.exp(log_decoder(z_grid) + norm.logpdf(z_grid)))
log_evidence = np.log(evidence)
z_prior = np.random.default_rng(0).normal(size=1_000_000)
draws = np.exp(log_decoder(z_prior))
z_score = (draws.mean() - evidence) / (draws.std() / np.sqrt(draws.size))
assert abs(z_score) < 4  # a correct formula exceeds 4 standard errors once in 16,000 runs
print(f"p(x) = {evidence:.4f}   log p(x) = {log_evidence:.4f} nats")

# %% [markdown]
# Quadrature and simulation agree within four standard errors. We'll use this test for every simulation in the chapter.
#
# ### Turn it round: the posterior
#
# Bayes' rule answers the question "which $z$ made this $x$?":
#
# $$p_\theta(z \mid x) = \frac{p_\theta(x \mid z)\, p(z)}{p_\theta(x)} \tag{2.2}$$
#
# The evidence is its denominator. To check it, we use no formula at all: draw two million pairs $(z, x)$ from the model,
# keep those whose $x$ fell within 0.02 of 1.5, and look at how many of them have $z > 0$.

# %% tags=["eq-2.2", "nbval-check-output"]
log_posterior = log_joint(z_grid) - log_evidence
rng = np.random.default_rng(1)
z_draws = rng.normal(size=2_000_000)
x_draws = rng.normal(z_draws**2 + z_draws / 2, 0.5)
kept = z_draws[abs(x_draws - X_OBSERVED) < 0.02]
mass_right = integrate(np.exp(log_posterior) * (z_grid > 0))
assert abs((kept > 0).mean() - mass_right) < 4 * np.sqrt(0.25 / kept.size)  # error of a share: at most √(¼/n)
print(f"posterior mass at z > 0: {mass_right:.3f}")

# %% mystnb={"figure": {"caption": "Left: 600 draws from the model; the dashed line is the observed x. Right: prior and posterior of z.", "name": "fig-posterior"}, "image": {"alt": "Left, a scatter of x against z along a parabola, crossed by the horizontal line x = 1.5 in two places. Right, the flat bell curve of the prior and a posterior with a low bump near z = -1.4 and a higher one near z = 0.9."}}
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), layout="constrained")
axes[0].scatter(z_draws[:600], x_draws[:600], s=6, color=GREY)
axes[0].axhline(X_OBSERVED, color=ORANGE, ls="--", label="observed x")
axes[0].set(xlabel="latent z", ylabel="data x", xlim=(-3, 3), ylim=(-2, 7))
axes[1].fill_between(z_grid, np.exp(log_posterior), color=BLUE, alpha=0.3)
axes[1].plot(z_grid, np.exp(log_posterior), color=BLUE, label="posterior")
axes[1].plot(z_grid, norm.pdf(z_grid), color=GREY, label="prior")
axes[1].set(xlabel="latent z", ylabel="density (per unit of z)", xlim=(-3, 3), ylim=(0, 1.75))
axes[0].legend(loc="upper center")
legend = axes[1].legend(loc="upper left")

# %% [markdown]
# The line $x = 1.5$ crosses the parabola twice, so two causes explain the data. The posterior has two bumps; 63% of its mass
# sits at $z > 0$, where the prior is higher. We'll keep this two-bump density for the whole chapter.
#
# ### Count what a grid costs
#
# If the grid is so easy, why does anyone need more? Because of the number of dimensions $d$ of $z$. With $n$ points along
# each axis, the decoder is evaluated
#
# $$N = n^d \tag{2.3}$$
#
# times. We run it where the answer is known: $x_j = z_j + 0.25\,\epsilon_j$ in each dimension, so that
# $x \sim \mathcal N(0, 1.0625\, I)$. Watch the error, then the number of evaluations.

# %% tags=["eq-2.3", "nbval-check-output"]
axis = np.linspace(-4, 4, 40)
for d in (1, 2, 3):
    nodes = np.stack(np.meshgrid(*[axis] * d), axis=-1).reshape(-1, d)
    x = np.full(d, 0.7)
    terms = norm.logpdf(x, nodes, 0.25).sum(1) + norm.logpdf(nodes).sum(1)
    on_grid = np.exp(terms).sum() * (axis[1] - axis[0]) ** d
    error = on_grid / np.exp(norm.logpdf(x, 0, np.sqrt(1.0625)).sum()) - 1
    assert len(nodes) == 40**d
    print(f"d = {d}: {len(nodes):6d} evaluations, relative error below 1e-10: {abs(error) < 1e-10}")
    assert abs(error) < 1e-10

# %% [markdown]
# A grid of 40 points an axis is more than accurate enough. Suppose your decoder manages a million evaluations a second.
# One image then costs:

# %% tags=["nbval-check-output"]
for d in (2, 4, 6, 8, 10, 20):
    seconds = 40.0**d / 1e6
    print(f"d = {d:2d}: {40.0**d:8.1e} evaluations, {seconds:8.1e} s = {seconds / 3.156e7:8.1e} years")

# %% [markdown]
# Two dimensions cost milliseconds. Eight cost a fifth of a year, ten 330 years, and that for *one* image and one setting of the
# decoder's weights. The evidence is out of reach, and with it the posterior. (Chapters with a two-dimensional $z$ will
# use the grid once more: as the exact answer to compare with.)
#
# So we'll give up the exact posterior and look for a **tractable density $q$ that is close to it**. For that we need a
# measure of "close".

# %% [markdown]
# ## Measure how far two densities are apart
#
# The **Kullback–Leibler divergence** from $q$ to $p$ is the average, over draws from $q$, of how much more probable $q$ finds
# them than $p$ does, on a log scale:
#
# $$\mathrm{KL}(q \,\|\, p) = \int q(z) \log \frac{q(z)}{p(z)}\, dz = \mathbb E_{q}\left[\log q(z) - \log p(z)\right] \tag{2.4}$$
#
# With the natural logarithm its unit is the **nat**. The cell computes the integral on the grid and the expectation by sampling.


# %% tags=["eq-2.4", "nbval-check-output"]
def kl(log_q, log_p):
    """KL divergence in nats between two log-densities on z_grid."""
    return integrate(np.exp(log_q) * (log_q - log_p))


kl_grid = kl(log_normal(z_grid, 0.5, np.log(0.25)), log_posterior)
z = np.random.default_rng(2).normal(0.5, 0.5, size=200_000)
draws = norm.logpdf(z, 0.5, 0.5) - (log_joint(z) - log_evidence)
assert abs(draws.mean() - kl_grid) < 4 * draws.std() / np.sqrt(draws.size)
print(f"KL(N(0.5, 0.5²) ‖ posterior) = {kl_grid:.3f} nats")

# %% [markdown]
# ### See that it is never negative, first way
#
# The logarithm lies below its tangent at 1:
#
# $$\log t \le t - 1, \quad \text{with equality only at } t = 1 \tag{2.5}$$
#
# *Why:* $t - 1 - \log t$ has derivative $1 - 1/t$: negative before $t = 1$, positive after. So its smallest value is at
# $t = 1$, where it is 0.

# %% tags=["eq-2.5"]
t = sympy.symbols("t", positive=True)
excess = t - 1 - sympy.log(t)
assert sympy.solve(sympy.diff(excess, t), t) == [1]  # the only stationary point ...
assert excess.subs(t, 1) == 0 and sympy.diff(excess, t, 2).subs(t, 1) > 0  # ... a minimum, at 0

# %% [markdown]
# Put $t = p(z)/q(z)$. We may add $t - 1$ under the integral of $q$ (positive everywhere, as a Gaussian is), for $\int q\,(p/q - 1)\,dz = \int p\,dz - \int q\,dz = 1 - 1 = 0$:
#
# $$\mathrm{KL}(q \,\|\, p) = \int q(z) \left[t(z) - 1 - \log t(z)\right] dz \ge 0, \quad t(z) = \frac{p(z)}{q(z)} \tag{2.6}$$
#
# The bracket is never negative, so neither is the integral. It is zero only if $t = 1$ wherever $q > 0$: if $q = p$.

# %% tags=["eq-2.6"]
for mean, log_var in [(0.5, np.log(0.25)), (-1.0, 0.0), (0.0, -2.0)]:
    log_q = log_normal(z_grid, mean, log_var)
    log_t = log_posterior - log_q
    integrand = np.exp(log_q) * (np.expm1(log_t) - log_t)
    assert (integrand >= 0).all()
    np.testing.assert_allclose(integrate(integrand), kl(log_q, log_posterior), rtol=1e-9)

# %% [markdown]
# ### See it a second way
#
# **Jensen's inequality** for the logarithm, which bends downwards: the mean of logs is at most the log of the mean,
#
# $$\mathbb E_q[\log w] \le \log \mathbb E_q[w] \quad \text{for any positive } w \tag{2.7}$$
#
# *Why:* put $t = w / \mathbb E_q[w]$ into (2.5) and take the expectation. The right side becomes $1 - 1 = 0$.
# With $w = p/q$ the left side is $-\mathrm{KL}(q\|p)$, and the right side is $\log \int p = \log 1 = 0$. So $\mathrm{KL} \ge 0$ again.

# %% tags=["eq-2.7"]
rng = np.random.default_rng(3)
for w in (rng.uniform(size=1000), rng.exponential(size=1000), np.exp(3 * rng.normal(size=1000))):
    assert np.log(w).mean() < np.log(w.mean())
z = rng.normal(0, 1.5, size=400_000)  # w = p/q under q = N(0, 1.5²): mean 1, mean of logs below 0
log_w = log_joint(z) - log_evidence - norm.logpdf(z, 0, 1.5)
assert abs(np.exp(log_w).mean() - 1) < 4 * np.exp(log_w).std() / np.sqrt(z.size)
assert log_w.mean() < 0

# %% [markdown]
# ### Swap its arguments and see another answer
#
# KL is no distance: $\mathrm{KL}(q\|p)$ and $\mathrm{KL}(p\|q)$ differ. We fit a Gaussian $q$ to our two-bump posterior $p$
# both ways. For $\mathrm{KL}(q\|p)$ we let an optimizer search, from two starting points:


# %% tags=["nbval-check-output"]
def reverse_kl(q):  # q is a pair: mean and log-variance
    return kl(log_normal(z_grid, *q), log_posterior)


fit_left, fit_right = (minimize(reverse_kl, [start, -3.0]).x for start in (-1.5, 1.0))
for name, q in (("left bump", fit_left), ("right bump", fit_right)):
    print(f"{name:10}: mean {q[0]:6.3f}, sd {np.exp(q[1] / 2):.3f}, KL(q‖p) = {reverse_kl(q):.3f} nats")

# %% [markdown]
# Two local optima, one on each bump. For $\mathrm{KL}(p\|q)$ the answer has a closed form. Only $-\mathbb E_p[\log q]$ depends on
# $q$, and it equals $\tfrac12 \mathbb E_p[\log 2\pi\sigma^2 + (z-\mu)^2/\sigma^2]$; setting its derivatives to zero gives
#
# $$\arg\min_{\mu, \sigma^2} \mathrm{KL}(p \,\|\, \mathcal N(\mu, \sigma^2)):\quad \mu = \mathbb E_p[z], \quad \sigma^2 = \mathrm{Var}_p[z] \tag{2.8}$$


# %% tags=["eq-2.8", "nbval-check-output"]
def forward_kl(q):
    return kl(log_posterior, log_normal(z_grid, *q))


mean_p = integrate(np.exp(log_posterior) * z_grid)
var_p = integrate(np.exp(log_posterior) * (z_grid - mean_p) ** 2)
fit_wide = np.array([mean_p, np.log(var_p)])
assert np.allclose(minimize(forward_kl, [1.0, -1.0]).x, fit_wide, atol=1e-4)
print(f"moments   : mean {mean_p:6.3f}, sd {np.sqrt(var_p):.3f}, KL(p‖q) = {forward_kl(fit_wide):.3f} nats")

# %% mystnb={"figure": {"caption": "One Gaussian fitted to a two-bump density p, in both directions of the KL divergence.", "name": "fig-kl-asymmetry"}, "image": {"alt": "The two-bump posterior with a narrow Gaussian on its right bump (reverse KL, best), a dashed one on its left bump (reverse KL, local optimum), and a wide low Gaussian over both (forward KL)."}}
fig, ax = plt.subplots(layout="constrained")
ax.fill_between(z_grid, np.exp(log_posterior), color="0.85", label="posterior p")
for q, color, style, label in (
    (fit_right, BLUE, "-", "least KL(q‖p)"),
    (fit_left, BLUE, "--", "KL(q‖p), local"),
    (fit_wide, ORANGE, "-", "least KL(p‖q)"),
):
    ax.plot(z_grid, np.exp(log_normal(z_grid, *q)), color=color, ls=style, label=label)
ax.set(xlabel="latent z", ylabel="density (per unit of z)", xlim=(-4, 3.3), ylim=(0, 2))
legend = ax.legend(loc="upper left")

# %% [markdown]
# Look at where each $q$ puts mass.
#
# - $\mathrm{KL}(q\|p)$ averages over draws from **q**. It punishes $q$ for being where $p$ is not, so $q$ settles on one bump.
# - $\mathrm{KL}(p\|q)$ averages over draws from **p**. It punishes $q$ for missing a place where $p$ is, so $q$ covers both bumps,
#   and the empty valley between them.
#
# Each is good at its own game and bad at the other's:

# %% tags=["nbval-check-output"]
for name, q in (("left bump", fit_left), ("right bump", fit_right), ("wide", fit_wide)):
    print(f"{name:10}: KL(q‖p) = {reverse_kl(q):6.3f}   KL(p‖q) = {forward_kl(q):6.3f} nats")

# %% [markdown]
# We'd like an unbiased estimate by sampling. Draws from the posterior $p$ are what we don't have; draws from $q$ are easy. So
# variational inference takes $\mathrm{KL}(q\|p)$, and lives with the price: a $q$ that is too narrow when it can't match.

# %% [markdown]
# ## Derive the ELBO from the KL divergence
#
# We want $q$ close to the posterior, so start from that KL divergence and put Bayes' rule into it. The steps:
#
# 1. The definition (2.4): $\mathrm{KL}(q \,\|\, p(z|x)) = \mathbb E_q[\log q(z) - \log p(z \mid x)]$.
# 2. Bayes' rule (2.2) in logs: $\log p(z \mid x) = \log p(x, z) - \log p(x)$. Minus that is $-\log p(x,z)$ **plus** $\log p(x)$.
# 3. $\log p(x)$ doesn't contain $z$, so its expectation is itself and it leaves the brackets.
#
# $$\mathrm{KL}(q(z) \,\|\, p_\theta(z \mid x)) = \mathbb E_q[\log q(z) - \log p_\theta(x, z)] + \log p_\theta(x) \tag{2.9}$$
#
# Mind the sign of the last term: with a minus, the right side is off by $2\,|\log p(x)|$. We check both.

# %% tags=["eq-2.9", "nbval-check-output"]
rng = np.random.default_rng(4)
for mean, log_var in rng.uniform([-2, -4], [2, -0.5], size=(50, 2)):
    log_q = log_normal(z_grid, mean, log_var)
    expectation = integrate(np.exp(log_q) * (log_q - log_joint(z_grid)))
    with_plus, with_minus = expectation + log_evidence, expectation - log_evidence
    assert abs(kl(log_q, log_posterior) - with_plus) < 1e-10
print(f"plus : off by {abs(kl(log_q, log_posterior) - with_plus):.3f} nats")
print(f"minus: off by {abs(kl(log_q, log_posterior) - with_minus):.3f} nats")

# %% [markdown]
# Everything in the expectation is known: $q$ is ours, and the joint is decoder times prior. Only $\log p(x)$ is out of reach. So
# give the known part, with its sign turned, a name: the **evidence lower bound**,
#
# $$\mathrm{ELBO}(q, \theta) = \mathbb E_q[\log p_\theta(x, z) - \log q(z)] \tag{2.10}$$
#
# It needs no posterior and no evidence, and 100,000 draws from $q$ estimate it:


# %% tags=["eq-2.10", "nbval-check-output"]
def elbo(q, slope=0.5):
    log_q = log_normal(z_grid, *q)
    return integrate(np.exp(log_q) * (log_joint(z_grid, slope=slope) - log_q))


z = np.random.default_rng(5).normal(fit_right[0], np.exp(fit_right[1] / 2), size=100_000)
draws = log_joint(z) - log_normal(z, *fit_right)
assert abs(draws.mean() - elbo(fit_right)) < 4 * draws.std() / np.sqrt(draws.size)
print(f"ELBO of the right-bump fit: {elbo(fit_right):.4f} nats")

# %% [markdown]
# Move the terms of (2.9) to the other side and you have the main equation of the chapter:
#
# $$\log p_\theta(x) = \mathrm{ELBO}(q, \theta) + \mathrm{KL}(q(z) \,\|\, p_\theta(z \mid x)) \tag{2.11}$$
#
# The KL is never negative, so the ELBO never exceeds $\log p(x)$. What is missing, the **gap**, is exactly the KL divergence from
# $q$ to the true posterior. Slide a narrow Gaussian along the axis and watch both terms.

# %% tags=["eq-2.11"]
slide = np.linspace(-2.2, 1.8, 161)
elbos = np.array([elbo((mean, fit_right[1])) for mean in slide])
gaps = np.array([reverse_kl((mean, fit_right[1])) for mean in slide])
assert np.ptp(elbos + gaps) < 1e-10  # the sum doesn't change ...
z = np.random.default_rng(6).normal(size=1_000_000)  # ... and is log p(x), here from prior draws
draws = np.exp(log_decoder(z))
assert abs(draws.mean() - np.exp(elbos[0] + gaps[0])) < 4 * draws.std() / 1000

# %% mystnb={"figure": {"caption": "ELBO and gap as the mean of a Gaussian q (sd 0.22) slides along the latent axis.", "name": "fig-elbo-gap"}, "image": {"alt": "The ELBO as a curve with two humps, at z = -1.4 and z = 0.9, under the constant line log p(x) = -1.78; the shaded space between them is the KL divergence from q to the posterior."}}
fig, ax = plt.subplots(layout="constrained")
ax.fill_between(slide, elbos, elbos + gaps, color=ORANGE, alpha=0.2, label="gap: KL(q‖posterior)")
ax.plot(slide, elbos, color=BLUE, label="ELBO")
ax.axhline(log_evidence, color="black", ls="--", label="log p(x)")
ax.set(xlabel="mean of q", ylabel="nats", xlim=(-2.2, 1.8), ylim=(-16, 0))
legend = ax.legend(loc="lower center", fontsize=11)

# %% [markdown]
# The ELBO rises where $q$ sits on a bump, and the gap shrinks by the same amount. The ceiling $\log p(x) = -1.776$ doesn't move.
# Even on the better bump the ELBO stops at $-2.264$: a Gaussian can't be a two-bump posterior. The gap left is the 0.488 nats
# that the fit reported above.
#
# ## Derive the ELBO again, from Jensen's inequality
#
# A second road, in two steps. First multiply and divide by $q$ in (2.1), so the integral becomes an expectation over $q$. Then swap
# log and expectation with (2.7), which can only lose:
#
# $$\log p_\theta(x) = \log \mathbb E_q\!\left[\frac{p_\theta(x, z)}{q(z)}\right] \ge \mathbb E_q\!\left[\log \frac{p_\theta(x, z)}{q(z)}\right] = \mathrm{ELBO}(q, \theta) \tag{2.12}$$

# %% tags=["eq-2.12"]
rng = np.random.default_rng(16)
for mean, log_var in (fit_wide, (0.0, 1.0), (0.5, 0.5)):
    z = rng.normal(mean, np.exp(log_var / 2), size=400_000)
    log_w = log_joint(z) - log_normal(z, mean, log_var)
    w = np.exp(log_w)
    assert abs(w.mean() - evidence) < 4 * w.std() / np.sqrt(w.size)  # the left side, for any q
    by_first_road = log_evidence - reverse_kl((mean, log_var))
    assert abs(log_w.mean() - by_first_road) < 4 * log_w.std() / np.sqrt(w.size)
    assert log_w.mean() < np.log(w.mean())

# %% [markdown]
# Both roads end at the same bound. Jensen is shorter; the KL road also tells you **what** the gap is.
#
# ## Split the ELBO into rate and distortion
#
# The joint is $\log p(x, z) = \log p(x \mid z) + \log p(z)$. Group $\log p(z)$ with $\log q(z)$, and a second KL appears, this time
# to the *prior*:
#
# $$\mathrm{ELBO}(q, \theta) = \mathbb E_q[\log p_\theta(x \mid z)] - \mathrm{KL}(q(z) \,\|\, p(z)) = -\,\text{distortion} - \text{rate} \tag{2.13}$$
#
# The **distortion** $-\mathbb E_q[\log p(x \mid z)]$ is what the decoder still gets wrong when it knows $z$. The **rate**
# $\mathrm{KL}(q \| p(z))$ is what knowing $z$ costs. Our VAEs print them as `reconstruction_loss` and `kl_loss`. This is the form
# that you train: both terms can be computed.

# %% tags=["eq-2.13", "nbval-check-output"]
print("q           distortion  (z>1.4)     rate    -ELBO      gap  -log p(x)")
fits = {"left bump": fit_left, "right bump": fit_right, "wide": fit_wide, "prior": (0.0, 0.0)}
for name, q in fits.items():
    log_q = log_normal(z_grid, *q)
    integrand = -np.exp(log_q) * log_decoder(z_grid)
    distortion, right_tail = integrate(integrand), integrate(integrand * (z_grid > 1.4))
    rate, gap = kl(log_q, norm.logpdf(z_grid)), reverse_kl(q)
    assert abs(distortion + rate + elbo(q)) < 1e-10
    row = (distortion, right_tail, rate, distortion + rate, gap, distortion + rate - gap)
    print(f"{name:13}" + "".join(f"{value:9.3f}" for value in row))

# %% [markdown]
# Read it row by row. The two narrow fits pay 2.0 and 1.5 nats of rate and buy a distortion below one nat. The prior as $q$ pays no rate
# and suffers a distortion of 5.2 nats. The wide fit, best in the other direction of the KL, does worse: it is wider than the prior
# (sd 1.108), and 4.1 of its 7.4 nats come from $z > 1.4$, where $z^2 + z/2$ overshoots $x$. The last column is the same for all:
# $-\log p(x)$ doesn't depend on $q$.
#
# > **Note.** There are two KL divergences. The one in the **loss** goes from $q$ to the *prior* and has no reason to be zero. The one
# > in the **gap** goes from $q$ to the *posterior*; you can't compute it, and you'd like it to be zero.

# %% [markdown]
# ## See the ELBO do two jobs
#
# In a VAE, $q$ comes from an encoder with parameters φ, and is written $q_\phi(z \mid x)$. Training climbs the ELBO in φ and θ at once.
#
# **Job 1: φ.** In (2.11) $\log p_\theta(x)$ doesn't contain φ, so climbing in φ does nothing but close the gap:
#
# $$\nabla_\phi\, \mathrm{ELBO} = -\nabla_\phi\, \mathrm{KL}(q_\phi(z \mid x) \,\|\, p_\theta(z \mid x)) \tag{2.14}$$
#
# Left side by TensorFlow's autodiff through (2.10); right side by finite differences of the KL on the grid. Here φ is the mean and
# log-variance of $q$.


# %% tags=["eq-2.14", "nbval-check-output"]
def slope_of(f, at, step=1e-5):
    """Central finite differences of f at a point."""
    at = np.asarray(at, "float64")
    return np.array([(f(at + e) - f(at - e)) / (2 * step) for e in step * np.eye(at.size)])


phi = tf.Variable([0.5, -1.0], dtype="float64")
with tf.GradientTape() as tape:
    log_q = gaussian_log_prob(z_grid[:, None], phi[:1], phi[1:])
    elbo_tf = tf.reduce_sum(tf.exp(log_q) * (log_joint(z_grid) - log_q)) * (z_grid[1] - z_grid[0])
by_autodiff = tape.gradient(elbo_tf, phi).numpy()
assert np.allclose(by_autodiff, -slope_of(reverse_kl, [0.5, -1.0]), rtol=1e-6)
print("gradient of the ELBO in (mean, log-variance):", by_autodiff.round(4))

# %% [markdown]
# **Job 2: θ.** The same step also trains the model. Here "$\log p(x)$ is constant" would be wrong: it depends on θ, and raising it
# is the aim. If $q$ equals the posterior at the current θ, the gap is zero there and can't be less anywhere, so its slope in θ is zero. By (2.11) the
# ELBO then has the slope of the evidence; and in (2.10), with $q$ held fixed, θ stands in $\log p_\theta(x, z)$ only:
#
# $$\nabla_\theta \log p_\theta(x) = \mathbb E_{p_\theta(z \mid x)}[\nabla_\theta \log p_\theta(x, z)] \tag{2.15}$$
#
# (the gradient on the right doesn't touch the density we average over). Our θ is the slope $a$, so far 0.5.


# %% tags=["eq-2.15", "nbval-check-output"]
def log_evidence_at(slope):
    return np.log(integrate(np.exp(log_joint(z_grid, slope=slope))))


gradient = (X_OBSERVED - z_grid**2 - 0.5 * z_grid) * z_grid / 0.25  # of log p(x, z) in a, by hand
right = integrate(np.exp(log_posterior) * gradient)
left = slope_of(lambda a: log_evidence_at(a[0]), [0.5])[0]
assert abs(left - right) < 1e-7
print(f"slope of log p(x) in a, at a = 0.5: {right:.4f} nats per unit")

# %% [markdown]
# Now draw it. Three curves over $a$: the evidence; the ELBO whose $q$ stays fixed at the posterior for $a = 0.5$ (the dot); and the ELBO of the
# best *Gaussian* $q$, fitted anew at each $a$, as an encoder would.

# %%
slopes = np.linspace(-0.5, 2.0, 51)
exact = np.array([log_evidence_at(a) for a in slopes])
posterior = np.exp(log_posterior)
touching = [integrate(posterior * (log_joint(z_grid, slope=a) - log_posterior)) for a in slopes]


def best_gaussian_elbo(a):
    fits = [minimize(lambda q: -elbo(q, slope=a), start) for start in (fit_left, fit_right)]
    return -min(fit.fun for fit in fits)


gaussian = np.array([best_gaussian_elbo(a) for a in slopes])
assert (exact >= np.array(touching) - 1e-10).all() and (exact > gaussian).all()

# %% mystnb={"figure": {"caption": "log p(x) against the decoder's parameter a, with two lower bounds.", "name": "fig-two-jobs"}, "image": {"alt": "log p(x) as a flat hill over the decoder's slope a, highest at 0. The ELBO with q fixed at the true posterior for a = 0.5 touches it there with the same slope and falls away on both sides. The ELBO of the best Gaussian q stays below; it has a dip at a = 0 and its peak near 1.25."}}
fig, ax = plt.subplots(layout="constrained")
ax.plot(slopes, exact, color="black", label="log p(x)")
ax.plot(slopes, touching, color=BLUE, ls="--", label="ELBO, q fixed")
ax.plot(slopes, gaussian, color=ORANGE, ls=":", lw=3, label="ELBO, best Gaussian")
ax.plot(0.5, log_evidence, "o", color=BLUE)
ax.set(xlabel="decoder parameter a", ylabel="nats", ylim=(-4, -1.5))
legend = ax.legend(fontsize=11, loc="lower center", bbox_to_anchor=(0.37, 0))

# %% tags=["nbval-check-output"]
peaks = slopes[exact.argmax()], slopes[gaussian.argmax()]
at_half = np.argmin(abs(slopes - 0.5))
print(f"log p(x) is highest at a = {abs(peaks[0]):.2f}: {exact.max():.3f} nats (at 0.5: {exact[at_half]:.3f})")
print(f"the Gaussian's ELBO at a = 0.00: {gaussian[exact.argmax()]:.3f}; at {peaks[1]:.2f}: {gaussian.max():.3f}")
assert gaussian[exact.argmax()] < min(gaussian[exact.argmax() - 1], gaussian[exact.argmax() + 1])
print(f"log p(x) at a = {peaks[1]:.2f}: {exact[gaussian.argmax()]:.3f} nats")

# %% [markdown]
# The dashed bound touches $\log p(x)$ at $a = 0.5$ with the same slope: there, a small step uphill on the ELBO is a step uphill on the likelihood.
# Away from that point its $q$ is out of date and it falls below.
#
# The dotted bound holds a surprise. It never touches, and it has a *dip* where the likelihood has its peak. At $a = 0$ the posterior has two equal
# bumps, the worst case for one Gaussian. Climb the dotted curve from $a = 0.5$ and you end at $a = 1.25$, where the likelihood is lower than where you started ($-1.975$ against $-1.776$). **A limited $q$ also misleads
# the decoder**: the second job is then done towards models whose posteriors $q$ can match.

# %% [markdown]
# ## Derive the KL term in closed form
#
# The encoder gives a mean $\mu$ and a log-variance $\log\sigma^2$ for each latent dimension. The rate is then a formula. One dimension first:
# $q = \mathcal N(\mu, \sigma^2)$ and $p = \mathcal N(0, 1)$. By (2.4) the KL is $\mathbb E_q[\log q] - \mathbb E_q[\log p]$; we take
# the two in turn.
#
# **First term.** $\log q(z) = -\tfrac12[\log 2\pi + \log\sigma^2 + (z-\mu)^2/\sigma^2]$. The first two summands are constants. The expectation of $(z-\mu)^2$
# is the variance $\sigma^2$, so the last one becomes 1:
#
# $$\mathbb E_q[\log q(z)] = -\tfrac12\left[\log 2\pi + \log \sigma^2 + 1\right] \tag{2.16}$$
#
# **Second term.** $\log p(z) = -\tfrac12[\log 2\pi + z^2]$. The expectation of $z^2$ is variance plus squared mean:
#
# $$\mathbb E_q[\log p(z)] = -\tfrac12\left[\log 2\pi + \sigma^2 + \mu^2\right] \tag{2.17}$$
#
# SymPy does both integrals from $-\infty$ to $\infty$ for every μ and σ at once:

# %% tags=["eq-2.16", "eq-2.17"]
u, m = sympy.symbols("z mu", real=True)
s = sympy.symbols("sigma", positive=True)
log_q_sym = -(sympy.log(2 * sympy.pi) + sympy.log(s**2) + (u - m) ** 2 / s**2) / 2
log_p_sym = -(sympy.log(2 * sympy.pi) + u**2) / 2
q_sym = sympy.exp(-((u - m) ** 2) / (2 * s**2)) / (s * sympy.sqrt(2 * sympy.pi))


def expectation_sym(f):
    return sympy.integrate(sympy.expand(f) * q_sym, (u, -sympy.oo, sympy.oo))


first, second = expectation_sym(log_q_sym), expectation_sym(log_p_sym)
assert sympy.simplify(first + (sympy.log(2 * sympy.pi) + 2 * sympy.log(s) + 1) / 2) == 0
assert sympy.simplify(second + (sympy.log(2 * sympy.pi) + s**2 + m**2) / 2) == 0

# %% [markdown]
# **Subtract.** $\log 2\pi$ cancels:
#
# $$\mathrm{KL}(\mathcal N(\mu, \sigma^2) \,\|\, \mathcal N(0, 1)) = \tfrac12\left[\mu^2 + \sigma^2 - 1 - \log\sigma^2\right] \tag{2.18}$$

# %% tags=["eq-2.18", "nbval-check-output"]
kl_sym = (m**2 + s**2 - 1 - sympy.log(s**2)) / 2
difference = sympy.simplify(sympy.expand_log(first - second - kl_sym))
assert difference == 0
print("SymPy's integrals minus the formula:", difference)

# %% [markdown]
# **Many dimensions.** Encoder and prior both treat the dimensions as independent, so both log-densities are sums over $j$, and so is the
# expectation of their difference:
#
# $$\mathrm{KL}(\mathcal N(\mu, \mathrm{diag}\,\sigma^2) \,\|\, \mathcal N(0, I)) = \tfrac12 \sum_{j=1}^{d} \left[\mu_j^2 + \sigma_j^2 - 1 - \log\sigma_j^2\right] \tag{2.19}$$
#
# It is a **sum**, not a mean. We write it down, compare with `vae_utils.distributions.gaussian_kl`, and check it against
# 200,000 draws in three dimensions.


# %% tags=["eq-2.19", "nbval-check-output"]
def kl_by_hand(z_mean, z_log_var):
    return 0.5 * np.sum(z_mean**2 + np.exp(z_log_var) - 1 - z_log_var, axis=-1)


z_mean, z_log_var = np.array([0.8, -0.3, 0.0]), np.array([-1.2, 0.4, 0.0])
epsilon = np.random.default_rng(7).normal(size=(200_000, 3))
z = z_mean + np.exp(0.5 * z_log_var) * epsilon
draws = multivariate_normal(z_mean, np.diag(np.exp(z_log_var))).logpdf(z) - norm.logpdf(z).sum(1)
exact = kl_by_hand(z_mean, z_log_var)
assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(200_000)
assert abs(float(gaussian_kl(z_mean, z_log_var)) - exact) < 1e-12
print(f"KL in three dimensions: {exact:.4f} nats")

# %% [markdown]
# **The gradient.** Differentiate (2.18), with $\sigma^2 = e^{\log\sigma^2}$, whose derivative in $\log\sigma^2$ is $\sigma^2$ again:
#
# $$\frac{\partial\, \mathrm{KL}}{\partial \mu} = \mu, \qquad \frac{\partial\, \mathrm{KL}}{\partial \log\sigma^2} = \tfrac12(\sigma^2 - 1) \tag{2.20}$$
#
# The first pulls the mean to 0, the second pulls the variance to 1. Now put all methods into one table, at $\mu = 0.8$ and
# $\log\sigma^2 = -1.2$: the formula; SymPy's integrals; quadrature with finite differences; Monte Carlo with reparameterized draws
# (mean ± one standard error); and Keras with autodiff.

# %%
at = np.array([0.8, -1.2])  # mean and log-variance
by_formula = [kl_by_hand(at[:1], at[1:]), at[0], 0.5 * (np.exp(at[1]) - 1)]

log_var = sympy.symbols("lambda", real=True)
f = (first - second).subs(s, sympy.exp(log_var / 2))
by_sympy = [g.subs({m: 0.8, log_var: -1.2}).evalf() for g in (f, f.diff(m), f.diff(log_var))]


def rate_on_grid(q):
    return kl(log_normal(z_grid, *q), norm.logpdf(z_grid))


by_quadrature = [rate_on_grid(at), *slope_of(rate_on_grid, at)]

# %% [markdown]
# For Monte Carlo, put $z = \mu + \sigma\epsilon$ into $\log q(z) - \log p(z) = -\tfrac12\log\sigma^2 - \tfrac12\epsilon^2 + \tfrac12 z^2$. Its derivatives for one draw are
# $z$ in μ, and $\tfrac12 z\,\sigma\epsilon - \tfrac12$ in $\log\sigma^2$.

# %% tags=["eq-2.20"]
epsilon = np.random.default_rng(8).normal(size=400_000)
z = at[0] + np.exp(0.5 * at[1]) * epsilon
draws = [0.5 * (z**2 - epsilon**2 - at[1]), z, 0.5 * z * (z - at[0]) - 0.5]
mean, error = np.mean(draws, axis=1), np.std(draws, axis=1) / np.sqrt(400_000)

variables = tf.Variable(at[:1]), tf.Variable(at[1:])
with tf.GradientTape() as tape:
    value = gaussian_kl(*variables)
by_autodiff = [float(value), *(float(g[0]) for g in tape.gradient(value, variables))]
assert (abs(mean - by_formula) < 4 * error).all()
for other in (by_sympy, by_quadrature, by_autodiff):
    assert np.allclose(np.array(other, "float64"), by_formula, atol=1e-8, rtol=0)

# %% tags=["nbval-check-output"]
print(f"{'method':12}{'KL (nats)':>18}{'d/d mean':>18}{'d/d log-variance':>18}")
rows = {
    "formula": by_formula,
    "SymPy": by_sympy,
    "quadrature": by_quadrature,
    "autodiff": by_autodiff,
}
for name, row in rows.items():
    print(f"{name:12}" + "".join(f"{float(value):18.5f}" for value in row))
cells = [f"{mean[i]:.4f} ± {error[i]:.4f}".rjust(18) for i in range(3)]
print(f"{'Monte Carlo':12}" + "".join(cells))

# %% [markdown]
# The first four methods agree to five decimals, and Monte Carlo agrees within four standard errors. From here on we trust `gaussian_kl`.

# %% [markdown]
# ## Solve a VAE exactly
#
# A VAE with a *linear* decoder can be solved with linear algebra, so it shows whether the theory is right to the last digit. It has 2
# latent dimensions and 5 pixels: $z \sim \mathcal N(0, I)$ and $x \mid z \sim \mathcal N(Wz, s^2 I)$.
#
# **The evidence.** $x = Wz + s\,\epsilon$ is a sum of Gaussians, so it is Gaussian; means add (to 0) and, as $z$ and ε are
# independent, covariances add:
#
# $$p_\theta(x) = \mathcal N(x;\; 0,\; W W^\top + s^2 I) \tag{2.21}$$

# %% tags=["eq-2.21", "nbval-check-output"]
W = np.array([[1.0, 0.5], [0.8, 0.6], [0.5, 0.9], [-0.3, 0.7], [0.2, -0.5]])
noise_var = 0.3
x = np.array([1.2, 0.4, 1.1, -0.2, 0.5])
log_px = multivariate_normal(np.zeros(5), W @ W.T + noise_var * np.eye(5)).logpdf(x)

axis = np.linspace(-6, 6, 301)  # the same by brute force: (2.1) on a grid of 301 x 301 points
nodes = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
terms = norm.logpdf(x, nodes @ W.T, np.sqrt(noise_var)).sum(1) + norm.logpdf(nodes).sum(1)
by_grid = logsumexp(terms) + 2 * np.log(axis[1] - axis[0])
assert abs(log_px - by_grid) < 1e-10
print(f"log p(x) = {log_px:.6f} nats, by the formula and by the grid")

# %% [markdown]
# **The posterior.** The logarithm of the joint is, as a function of $z$, $-\tfrac12[z^\top z + \|x - Wz\|^2/s^2]$ plus a constant. That is quadratic, so the
# posterior is Gaussian. The quadratic part is $z^\top (I + W^\top W/s^2) z$, so the inverse covariance is $I + W^\top W/s^2 = M/s^2$. The mean is
# where the derivative is zero: $z - W^\top(x - Wz)/s^2 = 0$, or $Mz = W^\top x$:
#
# $$p_\theta(z \mid x) = \mathcal N(z;\; M^{-1} W^\top x,\; s^2 M^{-1}), \qquad M = W^\top W + s^2 I \tag{2.22}$$
#
# If it is right, then decoder × prior ÷ posterior gives the same evidence at *every* $z$ (Bayes' rule again):

# %% tags=["eq-2.22"]
M = W.T @ W + noise_var * np.eye(2)
post_mean, post_cov = np.linalg.solve(M, W.T @ x), noise_var * np.linalg.inv(M)
z = np.random.default_rng(9).normal(size=(1000, 2))
log_joint_z = norm.logpdf(x, z @ W.T, np.sqrt(noise_var)).sum(1) + norm.logpdf(z).sum(1)
implied = log_joint_z - multivariate_normal(post_mean, post_cov).logpdf(z)
assert np.abs(implied - log_px).max() < 1e-10

# %% [markdown]
# **The ELBO**, for any Gaussian $q = \mathcal N(m, S)$. The distortion needs $\mathbb E_q\|x - Wz\|^2$. Write $z = m + (z - m)$: the squared error of the mean remains,
# the cross terms average to zero, and the spread adds $\mathbb E\|W(z-m)\|^2 = \mathrm{tr}(W S W^\top)$. With $P = 5$ pixels:
#
# $$\mathbb E_q[\log p_\theta(x \mid z)] = -\tfrac12\left[P \log 2\pi s^2 + \frac{\|x - Wm\|^2 + \mathrm{tr}(W S W^\top)}{s^2}\right] \tag{2.23}$$
#
# To check it we need exact expectations. **Gauss–Hermite quadrature** is a weighted sum over chosen points; with 3 points an axis it has no error for
# quadratic functions such as ours.


# %%
def expected_log_lik(m, S):
    error = np.sum((x - W @ m) ** 2) + np.trace(W @ S @ W.T)
    return -0.5 * (5 * np.log(2 * np.pi * noise_var) + error / noise_var)


roots, weights = np.polynomial.hermite_e.hermegauss(3)
nodes = np.stack(np.meshgrid(roots, roots), axis=-1).reshape(-1, 2)
node_weights = np.outer(weights, weights).ravel() / (2 * np.pi)


def gauss_hermite(f, m, S):
    return node_weights @ f(m + nodes @ np.linalg.cholesky(S).T)


# %% tags=["eq-2.23"]
m_test, S_test = np.array([0.3, -0.7]), np.array([[0.5, 0.2], [0.2, 0.4]])


def log_lik(z):
    return norm.logpdf(x, z @ W.T, np.sqrt(noise_var)).sum(1)


assert abs(expected_log_lik(m_test, S_test) - gauss_hermite(log_lik, m_test, S_test)) < 1e-12

# %% [markdown]
# **The KL of two Gaussians** with full covariances, in $d$ dimensions. The steps are those of (2.16)–(2.18): $\mathbb E_q[\log q]$ holds $\log\det S$ and the constant $d$, and
# $\mathbb E_q[\log p]$ holds the average squared distance to $m_0$, measured with $S_0^{-1}$:
#
# $$\mathrm{KL}(\mathcal N(m, S) \,\|\, \mathcal N(m_0, S_0)) = \tfrac12\left[\mathrm{tr}(S_0^{-1} S) + (m_0 - m)^\top S_0^{-1} (m_0 - m) - d + \log\frac{\det S_0}{\det S}\right] \tag{2.24}$$


# %% tags=["eq-2.24"]
def kl_between(m, S, m_0, S_0):
    precision = np.linalg.inv(S_0)
    log_dets = np.linalg.slogdet(S_0)[1] - np.linalg.slogdet(S)[1]
    return 0.5 * (np.trace(precision @ S) + (m_0 - m) @ precision @ (m_0 - m) - len(m) + log_dets)


q, p = multivariate_normal(m_test, S_test), multivariate_normal(post_mean, post_cov)
by_quadrature = gauss_hermite(lambda z: q.logpdf(z) - p.logpdf(z), m_test, S_test)
assert abs(kl_between(m_test, S_test, post_mean, post_cov) - by_quadrature) < 1e-12

# %% [markdown]
# ### Test the identity to ten digits
#
# Now (2.11), for a thousand random $q$, with all three terms computed by different formulas. ELBO: (2.23) minus (2.24) to the prior. Gap: (2.24) to the posterior. Evidence:
# (2.21).


# %% tags=["eq-2.11", "nbval-check-output"]
def exact_elbo(m, S):
    return expected_log_lik(m, S) - kl_between(m, S, np.zeros(2), np.eye(2))


rng = np.random.default_rng(10)
worst, gaps = 0.0, []
for _ in range(1000):
    m, A = rng.normal(size=2), rng.normal(size=(2, 2))
    S = A @ A.T + 0.05 * np.eye(2)
    gaps.append(kl_between(m, S, post_mean, post_cov))
    worst = max(worst, abs(exact_elbo(m, S) + gaps[-1] - log_px))
assert worst < 1e-10
print(f"gaps from {min(gaps):.2f} to {max(gaps):.1f} nats; ELBO + gap = log p(x) within 1e-10: {worst < 1e-10}")

# %% [markdown]
# The gaps differ a lot and the sum is the same to ten digits. And at the true posterior the gap is gone:

# %% tags=["nbval-check-output"]
at_posterior = log_px - exact_elbo(post_mean, post_cov)
assert abs(at_posterior) < 1e-10 and kl_between(post_mean, post_cov, post_mean, post_cov) < 1e-10
print(f"gap at the posterior below 1e-10 nats: {abs(at_posterior) < 1e-10}")

# %% [markdown]
# ### See what a diagonal encoder can't reach
#
# A VAE's encoder gives one variance for each dimension and no covariance. If the posterior's precision $\Lambda = S_0^{-1}$ isn't diagonal, that costs something.
# In (2.24) take $m = m_0$, where the square is least, and a diagonal $S$. Then the trace is $\sum_j \Lambda_{jj} S_{jj}$ and $\log\det S = \sum_j \log S_{jj}$; the derivative $\Lambda_{jj} - 1/S_{jj}$ is zero at
# $S_{jj} = 1/\Lambda_{jj}$. There the trace is $d$ and cancels $-d$. What remains is
#
# $$\min_{q\ \text{diagonal}} \mathrm{KL}(q \,\|\, p_\theta(z \mid x)) = \tfrac12\left[\sum_j \log \Lambda_{jj} - \log\det\Lambda\right] \tag{2.25}$$

# %% tags=["eq-2.25", "nbval-check-output"]
Lambda = np.linalg.inv(post_cov)
floor = 0.5 * (np.log(np.diag(Lambda)).sum() - np.linalg.slogdet(Lambda)[1])
search = minimize(lambda v: kl_between(v[:2], np.diag(np.exp(v[2:])), post_mean, post_cov), np.zeros(4))
assert abs(search.fun - floor) < 1e-8
print(f"least gap of a diagonal q: {floor:.4f} nats (an optimizer's search: {search.fun:.4f})")

# %% [markdown]
# An optimizer over all four numbers finds no better. Remember this: the decoder will soon notice that it can avoid this cost.

# %% [markdown]
# ### Climb to the evidence with more samples
#
# Jensen loses because the weights $w = p(x, z)/q(z)$ scatter. Average $K$ of them *inside* the log and they scatter less. This is the **importance-weighted bound**:
#
# $$\mathcal L_K = \mathbb E_{z_1, \dots, z_K \sim q}\left[\log \frac1K \sum_{k=1}^K \frac{p_\theta(x, z_k)}{q(z_k)}\right] \le \log p_\theta(x) \tag{2.26}$$
#
# $\mathcal L_1$ is the ELBO. It never exceeds $\log p(x)$, by (2.7): the mean inside has expectation $p(x)$. We use the prior as a poor $q$ and the best
# diagonal $q$ as a good one, with 1,000 × 1,024 draws each. We compute in logs, with `logsumexp`, since weights can under- and overflow.


# %%
def log_weights(m, S, rng, shape=(1000, 1024)):
    q = multivariate_normal(m, S)
    z = q.rvs(shape, random_state=rng)
    error = ((x - z @ W.T) ** 2).sum(-1) / noise_var
    log_p = -0.5 * (5 * np.log(2 * np.pi * noise_var) + error + 2 * np.log(2 * np.pi) + (z**2).sum(-1))
    return log_p - q.logpdf(z)


# %% tags=["eq-2.26"]
def bound(log_w, K):  # one value of log (1/K) Σ w for each group of K draws
    return logsumexp(log_w.reshape(-1, K), axis=1) - np.log(K)


choices = {"prior": (np.zeros(2), np.eye(2)), "diagonal": (post_mean, np.diag(1 / np.diag(Lambda)))}
bounds = {}
for name, (m, S) in choices.items():
    log_w = log_weights(m, S, np.random.default_rng(11))
    bounds[name] = [bound(log_w, 2**k) for k in range(11)]
    for b in bounds[name]:
        assert b.mean() < log_px + 4 * b.std() / np.sqrt(b.size)
    one = bounds[name][0]
    assert abs(one.mean() - exact_elbo(m, S)) < 4 * one.std() / np.sqrt(one.size)  # K = 1: the ELBO

# %% tags=["nbval-check-output"]
print(f"log p(x) = {log_px:.2f}")
assert all(abs(bounds[name][10].mean() - log_px) < 0.01 for name in choices)
for k in (0, 2, 4, 6, 8, 10):
    prior_bound, diagonal_bound = (bounds[name][k].mean() for name in choices)
    print(f"K = {2**k:4d}: prior {prior_bound:6.2f}   diagonal {diagonal_bound:6.2f}")

# %% [markdown]
# Why does it *climb*? Take two groups with average weights $a$ and $b$. Merging them replaces the mean of two logs by the log of a mean, which is never smaller
# (Jensen once more, or: the geometric mean is at most the arithmetic mean):
#
# $$\tfrac12 \log a + \tfrac12 \log b \le \log \frac{a + b}{2} \tag{2.27}$$
#
# So $\mathcal L_{2K} \ge \mathcal L_K$. On the same draws this holds with no room for chance:

# %% tags=["eq-2.27"]
a, b = sympy.symbols("a b", positive=True)
assert sympy.expand(((a + b) / 2) ** 2 - a * b - ((a - b) / 2) ** 2) == 0  # so ab <= ((a+b)/2)²
for b_K in bounds.values():
    assert (np.diff([b.mean() for b in b_K]) >= 0).all()

# %% mystnb={"figure": {"caption": "Gap between log p(x) and the importance-weighted bound against the number of samples K, $\\pm$ 2 standard errors, while it exceeds them. The grey line falls as 1/K.", "name": "fig-importance-weighted"}, "image": {"alt": "Log-log plot of two falling curves: with the prior as q the gap falls from 8.7 nats at K = 1, with the best diagonal q from 0.12 nats; on the right both are about parallel to a grey line of slope -1."}}
fig, ax = plt.subplots(layout="constrained")
for name, color, marker in (("prior", ORANGE, "s"), ("diagonal", BLUE, "o")):
    gap = np.array([log_px - b.mean() for b in bounds[name]])
    error = np.array([2 * b.std() / np.sqrt(b.size) for b in bounds[name]])
    seen = gap > error
    K = 2.0 ** np.arange(11)[seen]
    ax.errorbar(K, gap[seen], error[seen], color=color, marker=marker, label=f"q: {name}")
ax.plot([1, 1000], [3, 0.003], color=GREY, lw=1, label="∝ 1/K")
ax.set(xscale="log", yscale="log", xlabel="samples K", ylabel="log p(x) − bound (nats)")
legend = ax.legend(loc="upper right")

# %% [markdown]
# Both bounds climb to the evidence, within 0.01 nats at $K = 1024$. The prior starts 8.7 nats below it and the good $q$ 0.12 (the gap that (2.25) gave). The prior's gap falls faster than $1/K$ at first; towards the right both run
# about parallel to the grey line. You'll use this bound in the evaluation chapter to report a test likelihood that isn't
# blamed for a poor encoder.

# %% [markdown]
# ### Let gradient ascent find the known optimum
#
# For this model the maximum-likelihood parameters are known: **probabilistic PCA** (Tipping & Bishop 1999). Let $\lambda_1 \ge \dots \ge \lambda_P$ and $u_1, \dots, u_P$ be the eigenvalues
# and eigenvectors of the data's covariance (about zero, our model's mean). Then, with any rotation $R$,
#
# $$W_{\mathrm{ML}} = U (\mathrm{diag}(\lambda_1, \dots, \lambda_d) - s^2 I)^{1/2} R, \qquad s^2_{\mathrm{ML}} = \frac{1}{P - d} \sum_{j > d} \lambda_j \tag{2.28}$$
#
# In words: the $d$ directions of largest variance become the columns of $W$ (less the noise variance, which every direction has), and the noise gets the average of
# the rest. We take this result from the paper and test it. Two properties of a maximum can be checked: the gradient of $\log p$ vanishes there, and random steps away from it lose likelihood.

# %%
rng = np.random.default_rng(12)
data = rng.normal(size=(1000, 2)) @ W.T + np.sqrt(noise_var) * rng.normal(size=(1000, 5))
C = data.T @ data / 1000
lam, U = (array[..., ::-1] for array in np.linalg.eigh(C))


def mean_log_lik(W, s2):  # (2.21), averaged over the data
    cov = W @ W.T + s2 * np.eye(5)
    return -0.5 * (5 * np.log(2 * np.pi) + np.linalg.slogdet(cov)[1] + np.trace(np.linalg.solve(cov, C)))


# %% tags=["eq-2.28", "nbval-check-output"]
s2_ml = lam[2:].mean()
W_ml = U[:, :2] * np.sqrt(lam[:2] - s2_ml)
best = mean_log_lik(W_ml, s2_ml)
pack = np.append(W_ml, s2_ml)


def as_function(v):
    return mean_log_lik(v[:-1].reshape(5, 2), v[-1])


assert np.abs(slope_of(as_function, pack)).max() < 1e-7
assert all(as_function(pack + 0.05 * rng.normal(size=11)) < best for _ in range(200))
print(f"maximum of the mean log-likelihood: {best:.4f} nats; noise variance {s2_ml:.4f}")

# %% [markdown]
# Now train it as a VAE, with no knowledge of that solution. The encoder is linear, $z_{\mathrm{mean}} = Vx$, with one `z_log_var` per dimension for all images, since the covariance in (2.22) doesn't depend on $x$. The loss is
# $-\mathrm{ELBO}$ in nats per image, averaged over the data. We take plain gradient steps on all parameters: θ = ($W$, log-noise) and φ = ($V$, `z_log_var`).


# %%
def linear_vae_loss(x, W, log_noise, V, z_log_var, beta=1.0):
    z_mean = x @ tf.transpose(V)
    spread = tf.reduce_sum(tf.exp(z_log_var) * tf.reduce_sum(W**2, axis=0))  # tr(W S Wᵀ)
    error = tf.reduce_sum((x - z_mean @ tf.transpose(W)) ** 2, axis=-1) + spread
    distortion = 0.5 * (5 * (np.log(2 * np.pi) + log_noise) + error * tf.exp(-log_noise))
    return tf.reduce_mean(distortion + beta * gaussian_kl(z_mean, z_log_var))


# Is the loss what was derived? On our one image it must be minus the exact ELBO, (2.23) minus (2.24):
V_test, log_var_test = np.linspace(-1, 1, 10).reshape(2, 5), np.array([-1.0, 0.5])
loss = float(linear_vae_loss(x[None], W, np.log(noise_var), V_test, log_var_test))
assert abs(loss + exact_elbo(V_test @ x, np.diag(np.exp(log_var_test)))) < 1e-10


# %%
def descend(compute_loss, variables, steps, step_size=0.02):
    losses = tf.Variable(np.zeros(steps))

    @tf.function  # the whole loop runs as one compiled graph
    def run():
        for step in tf.range(steps):
            with tf.GradientTape() as tape:
                loss = compute_loss()
            gradients = tape.gradient(loss, variables)
            for i, variable in enumerate(variables):
                variable.assign_sub(step_size * gradients[i])
            losses.scatter_nd_update([[step]], [loss])

    run()
    return losses.numpy()


# %%
def train_linear_vae(latent_dim=2, beta=1.0, noise=None, steps=4000):  # give `noise` to hold s² fixed
    rng = np.random.default_rng(13)
    W = tf.Variable(0.1 * rng.normal(size=(5, latent_dim)))
    V = tf.Variable(0.1 * rng.normal(size=(latent_dim, 5)))
    log_noise = tf.Variable(np.log(noise or 1.0), dtype="float64")
    z_log_var = tf.Variable(np.zeros(latent_dim))
    variables = [W, V, z_log_var] + ([] if noise else [log_noise])
    losses = descend(lambda: linear_vae_loss(data, W, log_noise, V, z_log_var, beta), variables, steps)
    return W.numpy(), float(tf.exp(log_noise)), losses


# %%
W_vae, s2_vae, losses = train_linear_vae()
assert abs(-losses[-1] - best) < 1e-6 and abs(s2_vae - s2_ml) < 1e-4
np.testing.assert_allclose(W_vae @ W_vae.T, W_ml @ W_ml.T, atol=1e-3)

# %% tags=["nbval-check-output"]
print(f"ELBO after training     {-losses[-1]:.4f} nats   maximum likelihood {best:.4f}")
print(f"noise variance          {s2_vae:.4f}        formula            {s2_ml:.4f}")
print(f"largest error in W Wᵀ below 1e-3: {np.abs(W_vae @ W_vae.T - W_ml @ W_ml.T).max() < 1e-3}")

# %% [markdown]
# The ELBO has reached the maximum of the *likelihood*, which it never computed. It could, since here the encoder is able to match the posterior, and the gap closes.
#
# We compared $W W^\top$ and not $W$, since a rotated $W R$ gives the same likelihood. But is every rotation as good for the ELBO? Take the trained $W$, rotate it by an angle, and give it
# its best diagonal encoder, whose gap is (2.25).

# %% tags=["nbval-check-output"]
for angle in (0, 15, 30, 45):
    c, s_ = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    W_rot = W_vae @ np.array([[c, -s_], [s_, c]])
    precision = (W_rot.T @ W_rot + s2_vae * np.eye(2)) / s2_vae
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    print(f"{angle:2d}°: log-likelihood {mean_log_lik(W_rot, s2_vae):.4f}, gap of the best diagonal q {gap:.4f}")

# %% mystnb={"figure": {"caption": "Left: distance of the ELBO from the maximum of the log-likelihood. Right: columns of W in the plane of the two principal axes; a sign is free.", "name": "fig-linear-vae"}, "image": {"alt": "Left, the missing nats fall from above 1 to below one millionth in 4,000 steps on a log scale. Right, the columns of the W that made the data lie between the axes, the columns that the VAE found lie on them, at the lengths that PCA gives."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.5), layout="constrained")
left.semilogy(np.maximum(best + losses, 1e-12), color=BLUE)
left.set(xlabel="gradient step", ylabel="max log-lik. − ELBO (nats)", ylim=(1e-8, 10))
for matrix, color, style, label in ((W, GREY, "o", "made the data"), (W_vae, BLUE, "s", "VAE found")):
    tips = U[:, :2].T @ matrix
    right.quiver([0, 0], [0, 0], *tips, color=color, angles="xy", scale_units="xy", scale=1, width=0.012)
    right.plot(*tips, style, color=color, label=label)
a, b = np.sqrt(lam[:2] - s2_ml)
right.plot([a, -a, 0, 0], [0, 0, b, -b], "x", ms=11, mew=2, color=ORANGE, label="PCA, either sign")
right.set(xlabel="along 1st principal axis", ylabel="along 2nd", xlim=(-2.6, 2.6), ylim=(-1.8, 3.1))
legend = right.legend(loc="upper right", fontsize=11)

# %% [markdown]
# The likelihood doesn't care about the rotation. The ELBO does: any angle off the principal axes makes the posterior correlated, and the diagonal $q$ pays. So the VAE found
# the solution whose columns are the principal axes (up to their order and sign). A diagonal encoder chooses axes for you (Rolínek et al. 2019; Lucas et al. 2019).

# %% [markdown]
# ## Turn the likelihood into a loss
#
# For pixels that are 0 or 1 the decoder gives a probability $p_i$ for each, and treats pixels as independent given $z$. Then logs add up:
#
# $$\log p_\theta(x \mid z) = \sum_{i=1}^{P} \left[x_i \log p_i + (1 - x_i) \log(1 - p_i)\right] \tag{2.29}$$
#
# Its negative is Keras' binary cross-entropy, with one difference that decides everything below. Look for a factor.

# %% tags=["eq-2.29", "nbval-check-output"]
rng = np.random.default_rng(14)
binary = rng.integers(0, 2, size=(4, 784)).astype("float32")
logits = rng.normal(size=(4, 784)).astype("float32")
by_scipy = bernoulli.logpmf(binary, expit(logits)).sum(axis=1)
x_log_p = binary * np.log(expit(logits)) + (1 - binary) * np.log(1 - expit(logits))
assert np.allclose(x_log_p.sum(axis=1), by_scipy, rtol=1e-5)
keras_loss = np.array(keras.losses.binary_crossentropy(binary, expit(logits)))
assert np.allclose(-784 * keras_loss, by_scipy, rtol=1e-5)
print("minus log-likelihood / Keras' binary_crossentropy:", (-by_scipy / keras_loss).round(1))

# %% [markdown]
# Keras **averages** over the last axis, the 784 pixels. The likelihood **sums**. To get nats per image, multiply by the number of pixels.
#
# ### Work with logits
#
# A network's last layer gives $a_i$, any real number, and $p_i = 1/(1 + e^{-a_i})$. Then $\log p_i = a_i - \log(1 + e^{a_i})$ and $\log(1 - p_i) = -\log(1 + e^{a_i})$. Put these in:
#
# $$\log p_\theta(x \mid z) = \sum_{i=1}^P \left[x_i a_i - \mathrm{softplus}(a_i)\right], \qquad \mathrm{softplus}(a) = \log(1 + e^a) \tag{2.30}$$
#
# It never takes the log of a number that was rounded to 0. Compare in float32 at a logit of 200 when the pixel is 0, where the answer is $-200$:

# %% tags=["eq-2.30", "nbval-check-output"]
by_logits = (binary * logits - np.logaddexp(0, logits)).sum(axis=1)
assert np.allclose(by_logits, by_scipy, rtol=1e-5)
assert np.allclose(bernoulli_log_prob(binary, logits), by_scipy, rtol=1e-5)
black, sure = np.zeros((1, 1), "float32"), np.full((1, 1), 200, "float32")
print("from logits:       ", float(bernoulli_log_prob(black, sure)[0]))
print("from probabilities:", -round(float(keras.losses.binary_crossentropy(black, expit(sure))[0]), 1))

# %% [markdown]
# Given bare probabilities, Keras clips them away from 0 and 1 so as not to return infinity. A pixel that is wrong by 200 nats then looks as if it were wrong by 16. Worse, look at the gradient:

# %% tags=["nbval-check-output"]
logit = tf.Variable(sure)
with tf.GradientTape(persistent=True) as tape:
    from_logits = -bernoulli_log_prob(black, logit)
    probabilities = keras.activations.sigmoid(logit)
    from_sigmoid = keras.losses.binary_crossentropy(black, probabilities)
    from_reshaped = keras.losses.binary_crossentropy(black, tf.reshape(probabilities, (1, 1)))
print("gradient from logits:       ", float(tape.gradient(from_logits, logit)[0, 0]))
print("from Keras' sigmoid:        ", float(tape.gradient(from_sigmoid, logit)[0, 0]))
print("from the same, reshaped:    ", float(tape.gradient(from_reshaped, logit)[0, 0]))

# %% [markdown]
# Straight after its own sigmoid Keras finds the logits behind the probabilities and mends the loss. Reshape them and that link is
# gone: the most wrong pixel then gives no gradient at all. Our models end in logits.
#
# ### Find the floor under grey digits
#
# MNIST's pixels are grey, between 0 and 1, and many tutorials put them into (2.29) all the same. It is then no longer the log-probability of anything. What does a *perfect* reconstruction, $p_i = x_i$, cost?
# The derivative of $-[x \log p + (1 - x)\log(1 - p)]$ in $p$ is $(p - x)/(p(1-p))$: zero at $p = x$, negative before, positive after. So the least is
#
# $$\min_p\; -\sum_i \left[x_i \log p_i + (1 - x_i) \log (1 - p_i)\right] = -\sum_i \left[x_i \log x_i + (1 - x_i) \log(1 - x_i)\right] \tag{2.31}$$
#
# which is zero for black and white pixels only. Load the digits, write it out, and compare with a brute-force search over $p$ for every one of the 256 grey levels.

# %% tags=["eq-2.31"]
digits = load_mnist(fallback="optical-digits")
x_train, x_test = (x.reshape(len(x), -1) for x in (digits.x_train, digits.x_test))


def binary_entropy(x):
    x = np.clip(x.astype("float64"), 1e-12, 1 - 1e-12)
    return -(x * np.log(x) + (1 - x) * np.log(1 - x))


grey = np.arange(256) / 255
p_search = np.linspace(0.0005, 0.9995, 1999)[:, None]
costs = -(grey * np.log(p_search) + (1 - grey) * np.log(1 - p_search))
np.testing.assert_allclose(costs.min(axis=0), binary_entropy(grey), atol=1e-3)
assert np.abs(p_search[costs.argmin(axis=0), 0] - grey).max() < 1e-3

# %%
floors = np.concatenate([binary_entropy(part).sum(axis=1) for part in np.array_split(x_test, 10)])
np.testing.assert_allclose(floors[:500], reconstruction_floor(digits.x_test[:500]), rtol=1e-6, atol=1e-6)
if digits.name == "mnist":
    assert abs(floors.mean() - 45.5) < 0.05
print(f"{digits.name}: a perfect reconstruction of a test image costs {floors.mean():.2f} nats on average")

# %% [markdown]
# On MNIST it is **45.5 nats**: no training will ever take a reconstruction loss on grey test digits below that. (`binary_entropy` is worked out again in `vae_utils.evaluation.reconstruction_floor`, and both agree.)
#
# ### Find the ceiling: a model that ignores z
#
# The other end: a decoder that gives every image the same probabilities. Averaged over images, (2.29) contains only the mean of each pixel in place of $x_i$, so by (2.31) that mean is the best $p_i$. Take the means from the training set (plus one white and one black image, so that no
# probability is 0) and score the test set:

# %%
pixel_means = (x_train.sum(axis=0, dtype="float64") + 1) / (len(x_train) + 2)
constant_logits = np.log(pixel_means / (1 - pixel_means))[None].astype("float32")
batches = np.array_split(x_test, 10)
independent = -np.concatenate([bernoulli_log_prob(batch, constant_logits) for batch in batches])
if digits.name == "mnist":
    assert abs(independent.mean() - 206) < 1
print(f"{digits.name}: independent pixels cost {independent.mean():.2f} nats per test image")

# %% [markdown]
# About **206 nats** on MNIST. Keep the two numbers in mind when you read a training log: between 206 and 45.5 lies all that knowing $z$ can gain on grey digits, and a reconstruction loss that stays near 206 means that
# the decoder ignores $z$.
#
# ### Convert nats to bits per dimension
#
# Papers on colour images print *bits per dimension*: divide by the number of pixels and by $\log 2$, the number of nats in a bit:
#
# $$\text{bits per dimension} = \frac{\text{nats per image}}{P \log 2} \tag{2.32}$$
#
# A fair coin for each pixel must cost 1 bit per pixel; that checks it.


# %% tags=["eq-2.32", "nbval-check-output"]
def bits_per_dim(nats, num_pixels=784):
    return nats / (num_pixels * np.log(2))


coin = -float(bernoulli_log_prob(binary[:1], np.zeros((1, 784), "float32"))[0])
assert abs(bits_per_dim(coin) - 1) < 1e-6
pixel_bits = -np.log2(expit(np.where(binary > 0, logits, -logits))).mean()  # straight in bits
assert abs(bits_per_dim(-by_scipy.mean()) - pixel_bits) < 1e-6
print(f"a fair coin for each pixel: {coin:.1f} nats = {bits_per_dim(coin):.3f} bits per dimension")

# %%
for name, nats in (("floor", floors.mean()), ("independent pixels", independent.mean())):
    print(f"{name:18}: {nats:6.2f} nats = {bits_per_dim(nats):.4f} bits per dimension")

# %% [markdown]
# ## Find the β that you didn't mean
#
# The **β-VAE** weighs the rate: distortion + β · rate. β = 1 is the ELBO. Now suppose that you *average* over $P$ pixels and over $d$ latent dimensions, as Keras' losses do by default.
# Multiply that loss by $P$, which moves no minimum, and read off the factor of the rate:
#
# $$\frac{\text{distortion}}{P} + \frac{\text{rate}}{d} = \frac1P \left[\text{distortion} + \frac{P}{d}\, \text{rate}\right], \qquad \beta = \frac{P}{d} \tag{2.33}$$
#
# Average over the pixels only and β = $P$. Average over the latent dimensions only and β = $1/d$. We measure the two factors on a random decoder, as the ratio of two gradients: of the sum and of the mean.

# %% tags=["eq-2.33", "nbval-check-output"]
rng = np.random.default_rng(15)
weights = rng.normal(size=(32, 784))  # a decoder from 32 latent dimensions to 784 pixels
z_mean, pixels = tf.Variable(rng.normal(size=(1, 32))), binary[:1].astype("float64")
with tf.GradientTape(persistent=True) as tape:
    distortion = -bernoulli_log_prob(pixels, z_mean @ weights / 10)
    distortion_mean = keras.losses.binary_crossentropy(pixels, z_mean @ weights / 10, from_logits=True)
    rate, rate_mean = gaussian_kl(z_mean, 0 * z_mean), tf.reduce_mean(0.5 * z_mean**2, axis=-1)  # σ² = 1
parts = (distortion, distortion_mean, rate, rate_mean)
by_sum, by_mean, rate_by_sum, rate_by_mean = (tape.gradient(part, z_mean).numpy() for part in parts)
P, d = by_sum / by_mean, rate_by_sum / rate_by_mean
assert np.allclose(P, 784, rtol=1e-5) and np.allclose(d, 32)  # the same in every coordinate
assert np.allclose(784 * (by_mean + rate_by_mean), by_sum + 784 / 32 * rate_by_sum)
for name, beta in (("pixels only", P), ("latents only", 1 / d), ("both", P / d)):
    print(f"784 pixels, 32 latent dimensions, average over {name:12}: β = {np.mean(beta):.5g}")

# %% [markdown]
# What does a wrong β do? In the linear VAE you can read it off. Divide distortion + β · rate by β: the decoder's log-likelihood is divided by β, which for a Gaussian is the same as a noise variance of $\beta s^2$
# (up to terms without $W$). So, at a fixed $s^2$, the solution is (2.28) with $\beta s^2$ for $s^2$, and a column is 0 where the root would be of a negative number. The columns $w_j$ have the squared lengths
#
# $$\|w_j\|^2 = \max(\lambda_j - \beta s^2,\; 0) \tag{2.34}$$
#
# A direction whose variance is below the "water line" $\beta s^2$ is switched off: that latent dimension **collapses**. Train with 4 latent dimensions on our five pixels to see it:

# %% tags=["eq-2.34", "nbval-check-output"]
for beta in (1.0, 4.0, 12.0):
    W_beta = train_linear_vae(latent_dim=4, beta=beta, noise=0.2, steps=6000)[0]
    found = np.linalg.eigvalsh(W_beta @ W_beta.T)[::-1][:4]
    expected = np.maximum(lam[:4] - beta * 0.2, 0)
    assert np.allclose(found, expected, atol=5e-3)
    print(f"β = {beta:4.1f}: squared lengths found {np.abs(found).round(1)}, formula {expected.round(1)}")

# %% [markdown]
# Now the same water lines on real digits: the eigenvalues of the covariance of 10,000 training digits, for a linear VAE with 32 latent dimensions and a noise variance of 0.05 per pixel. The optimal rate follows from (2.22) with
# (2.34). In a live dimension (over the line) the posterior variance is $\sigma^2 = \beta s^2/\lambda_j$, and $\mu^2$ is $1 - \sigma^2$ on average over the data, so in (2.18) only $-\tfrac12\log\sigma^2 = \tfrac12\log(\lambda_j/\beta s^2)$ is left:
# half the height over the water line, on a log scale. The loop checks it against (2.19), averaged over the digits.

# %%
some = x_train[:10_000].astype("float64")
some -= some.mean(axis=0)
eigenvalues, axes_ = (array[..., ::-1] for array in np.linalg.eigh(some.T @ some / len(some)))
lines = {"latents averaged": 1 / 32, "sums, as derived": 1.0, "both averaged": 24.5, "pixels averaged": 784.0}

# %%
for name, beta in lines.items():
    live = np.flatnonzero(eigenvalues[:32] > beta * 0.05)
    z_var = beta * 0.05 / eigenvalues[live]  # posterior variance
    rate = 0.5 * np.log(1 / z_var).sum()
    z_mean = some @ axes_[:, live] * np.sqrt((1 - z_var) / eigenvalues[live])  # the encoder's means
    assert abs(kl_by_hand(z_mean, np.log(z_var)).mean() - rate) < 1e-6
    print(f"{name:17}: β = {beta:8.5g}   {len(live):2d} of 32 dimensions live, rate {rate:6.2f} nats")

# %% mystnb={"figure": {"caption": "Eigenvalues of the digits' covariance, and the water lines of four values of $\\beta$ (noise variance 0.05). Dimensions under a line collapse.", "name": "fig-water-line"}, "image": {"alt": "Falling eigenvalues of 32 principal directions on a log scale, with four horizontal lines: beta 1/32 and 1 below all of them, beta 24.5 crossing them between the ninth and the tenth, beta 784 above all."}}
fig, ax = plt.subplots(layout="constrained")
ax.plot(np.arange(1, 33), eigenvalues[:32], "o", color=BLUE, ms=5)
for name, beta in lines.items():
    ax.axhline(beta * 0.05, color=ORANGE, ls="--", lw=1.5)
    text = f"{name}: β = {beta:.3g}".replace("0.0312", "1/32")
    ax.text(32.5, beta * 0.0575, text, ha="right", color=ORANGE, fontsize=11)
ax.set(yscale="log", xlabel="principal direction", ylabel="variance (squared grey levels)")
limits = ax.set_ylim(1e-3, 200)

# %% [markdown]
# With sums, all 32 dimensions live. Averaging over the latent dimensions makes the rate cheap: the code carries 101 nats where the ELBO asks for 46. Averaging over pixels collapses *everything*: a VAE that prints a constant image. Averaging
# over both is not neutral either, since $P \ne d$. So this series sums over pixels and over latent dimensions, and averages over the batch only.

# %% [markdown]
# ## Push q to its two extremes
#
# **Posterior = prior.** With $\mu = 0$ and $\sigma^2 = 1$, (2.18) is 0: $z$ tells nothing about $x$. The distortion is then what independent pixels cost, 206 nats on MNIST.
# This is *posterior collapse*.
#
# **A delta**, all mass on one point. Send σ to 0 and $q$ names one exact $z$. In (2.18) $\sigma^2$ vanishes and $-\log\sigma$ grows without end. How fast? Halve σ:
#
# $$\mathrm{KL}(\mathcal N(\mu, \tfrac14\sigma^2) \,\|\, \mathcal N(0, 1)) - \mathrm{KL}(\mathcal N(\mu, \sigma^2) \,\|\, \mathcal N(0, 1)) = \log 2 - \tfrac38 \sigma^2 \;\to\; \log 2 \tag{2.35}$$
#
# (from $-\tfrac12\log\tfrac14 = \log 2$ and $\tfrac12(\tfrac14 - 1)\sigma^2 = -\tfrac38\sigma^2$).
#
# Each halving costs $\log 2$ nats, one **bit**: one more binary digit of precision of $z$. So an ordinary autoencoder, which names $z$ exactly, has an infinite rate.

# %% tags=["eq-2.35", "nbval-check-output"]
assert abs(float(gaussian_kl(np.zeros(2), np.zeros(2)))) < 1e-12  # q = prior
for sd in (1.0, 0.1, 0.01, 0.001):
    wide, narrow = rate_on_grid((0.5, 2 * np.log(sd))), rate_on_grid((0.5, 2 * np.log(sd / 2)))
    if sd >= 0.1:  # where the grid resolves q, check by quadrature
        assert abs(narrow - wide - (np.log(2) - 3 / 8 * sd**2)) < 1e-8
    rates = [kl_by_hand(np.array([0.5]), np.array([2 * np.log(v)])) for v in (sd, sd / 2)]
    assert abs(rates[1] - rates[0] - (np.log(2) - 3 / 8 * sd**2)) < 1e-10
    print(
        f"sd {sd:5.3f}: rate {rates[0]:6.3f} nats; halving sd adds {rates[1] - rates[0]:.4f} (log 2 = {np.log(2):.4f})"
    )

# %% [markdown]
# Back to the first model, with $q$ centred on the right bump: what happens to both terms as we shrink it?

# %% mystnb={"figure": {"caption": "Rate, distortion and their sum for the first model as the width of q shrinks (to the left).", "name": "fig-extremes"}, "image": {"alt": "On a log axis of the standard deviation of q, distortion falls to a floor of about 0.3 nats to the left, rate rises in a straight line, and their sum has a minimum near 0.22."}}
sds = np.geomspace(0.012, 1.0, 80)
fit_mean, fit_sd = fit_right[0], np.exp(fit_right[1] / 2)
rates = np.array([rate_on_grid((fit_mean, 2 * np.log(sd))) for sd in sds])
totals = -np.array([elbo((fit_mean, 2 * np.log(sd))) for sd in sds])
fig, ax = plt.subplots(layout="constrained")
ax.plot(sds, totals, color="black", label="−ELBO")
ax.plot(sds, rates, color=BLUE, ls="--", label="rate")
ax.plot(sds, totals - rates, color=ORANGE, ls=":", label="distortion")
ax.axvline(fit_sd, color=GREY, lw=1, label="fitted sd")
ax.set(xscale="log", xlabel="standard deviation of q", ylabel="nats", ylim=(0, 8.5))
legend = ax.legend(loc="upper left", ncols=2)

# %% tags=["nbval-check-output"]
assert abs(sds[totals.argmin()] - fit_sd) < 0.02
print(
    f"least -ELBO {-elbo(fit_right):.2f} at sd {fit_sd:.2f}, of which distortion {-elbo(fit_right) - rate_on_grid(fit_right):.2f}"
)
print(f"at sd {sds[0]:.3f}: -ELBO {totals[0]:.2f}, of which distortion {totals[0] - rates[0]:.2f}")

# %% [markdown]
# To the left the distortion has nothing more to gain and the rate goes on rising. To the right $q$ is so wide that the decoder can't tell which $z$ is meant. The ELBO settles where one more bit of precision would
# buy less than it costs.

# %% [markdown]
# ## In this notebook
#
# - The evidence $\int p(x|z)\,p(z)\,dz$ takes $n^d$ decoder evaluations on a grid: 1,600 in two dimensions, $10^{16}$ in ten with 40 points an axis.
# - $\mathrm{KL}(q\|p)$ sits on one bump (0.488 nats), $\mathrm{KL}(p\|q)$ covers both.
# - $\log p(x) = \mathrm{ELBO} + \mathrm{KL}(q\|p(z|x))$, to $10^{-10}$ nats for a thousand random $q$ of a linear VAE. φ closes the gap; θ raises the evidence.
# - The Gaussian KL is $\tfrac12\sum_j[\mu_j^2 + \sigma_j^2 - 1 - \log\sigma_j^2]$: SymPy, quadrature, Monte Carlo and autodiff agree.
# - A linear VAE trained by gradient ascent lands on probabilistic PCA, and its diagonal encoder picks the principal axes.
# - The importance-weighted bound never falls as $K$ doubles, and at $K = 1024$ it is within 0.01 nats of $\log p(x)$.
# - Keras averages over pixels; the likelihood sums. Averages hide β = 784, 1/32 or 24.5, which leave 0, 32 or 9 live dimensions out of 32 in a linear VAE.
# - On MNIST's grey test digits a perfect reconstruction costs 45.5 nats, and a model that ignores $z$ at best about 206.

# %% [markdown]
# ## Exercises
#
# Each exercise has a stub for you to fill in, a cell that checks your answer, and a solution to unfold. Run the check cell again after you change the stub.
#
# ### Exercise 1: the KL divergence between any two Gaussians
#
# Write $\mathrm{KL}(\mathcal N(\mu_1, \sigma_1^2) \,\|\, \mathcal N(\mu_2, \sigma_2^2))$ in one dimension, from log-variances, in nats. You'll need it when the prior is learned. Follow (2.16)–(2.18).


# %% tags=["exercise"]
def my_kl(mean_1, log_var_1, mean_2, log_var_2):
    return None  # your code here


# %% tags=["exercise-check"]
def check_1(answer):
    assert answer(0.5, -1.0, -0.3, 0.4) is not None, "The function returns nothing yet."
    grid = np.linspace(-30, 30, 60_001)
    for a, b, c, d in ((0.5, -1.0, 0.0, 0.0), (0.5, -1.0, -0.3, 0.4), (2.0, 0.7, -1.0, -0.2)):
        log_1, log_2 = norm.logpdf(grid, a, np.exp(b / 2)), norm.logpdf(grid, c, np.exp(d / 2))
        expected = np.trapezoid(np.exp(log_1) * (log_1 - log_2), grid)
        assert abs(answer(a, b, c, d) - expected) < 1e-6, (
            f"For N({a}, e^{b}) and N({c}, e^{d}) quadrature gives {expected:.5f}. Which density do you average over?"
        )
    print("Exercise 1: right.")


if my_kl(0.5, -1.0, -0.3, 0.4) is None:
    print("Exercise 1: your turn.")
else:
    check_1(my_kl)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_kl(mean_1, log_var_1, mean_2, log_var_2):
#     distance = (mean_1 - mean_2) ** 2 * np.exp(-log_var_2)
#     return 0.5 * (distance + np.exp(log_var_1 - log_var_2) - 1 - (log_var_1 - log_var_2))
# ```
#
# $\mathbb E_1[(z - \mu_2)^2] = \sigma_1^2 + (\mu_1 - \mu_2)^2$, divided by $\sigma_2^2$; the entropies leave $-1 - \log(\sigma_1^2/\sigma_2^2)$. With $\mu_2 = 0$ and $\sigma_2 = 1$ it is (2.18).
#
# </details>

# %% [markdown]
# ### Exercise 2: find the hidden β
#
# A colour image has 32 × 32 pixels with 3 channels. A tutorial takes `binary_crossentropy`, which averages over the three channels, then *sums* over rows and columns. It *averages* the KL over `latent_dim` dimensions. Write a function that
# returns β for a given number of channels and `latent_dim`, in the sense of distortion + β · rate with sums everywhere.


# %% tags=["exercise"]
def my_beta(channels, latent_dim):
    return None  # your code here


# %% tags=["exercise-check"]
def check_2(answer):
    assert answer(3, 6) is not None, "The function returns nothing yet."
    rng = np.random.default_rng(0)
    for channels, latent_dim in ((3, 6), (1, 2), (3, 128)):
        pixel_nats, latent_nats = rng.exponential(size=(32, 32, channels)), rng.exponential(size=latent_dim)
        tutorial = pixel_nats.mean(axis=-1).sum() + latent_nats.mean()
        honest = pixel_nats.sum() + answer(channels, latent_dim) * latent_nats.sum()
        assert np.isclose(honest, channels * tutorial), (
            f"With {channels} channels and latent_dim={latent_dim}, your β doesn't make the two losses proportional."
        )
    print("Exercise 2: right.")


if my_beta(3, 6) is None:
    print("Exercise 2: your turn.")
else:
    check_2(my_beta)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_beta(channels, latent_dim):
#     return channels / latent_dim
# ```
#
# The loss is distortion / channels + rate / latent_dim. Multiply by channels. With one channel (MNIST) and two latent dimensions β = 1/2.
#
# </details>

# %% [markdown]
# ### Exercise 3: the importance-weighted bound, safe from underflow
#
# Write $\log \frac1K \sum_k w_k$ for log-weights of shape `(K, batch)`, over the first axis. It must survive log-weights near $-1000$,
# which is where those of an image lie, and a different level for each image of the batch.


# %% tags=["exercise"]
def my_bound(log_weights):
    return None  # your code here


# %% tags=["exercise-check"]
def check_3(answer):
    log_w = np.random.default_rng(0).normal(size=(50, 3))
    assert answer(log_w) is not None, "The function returns nothing yet."
    expected = np.log(np.exp(log_w).mean(axis=0))
    assert np.shape(answer(log_w)) == (3,), "One number per example: shape (batch,)."
    assert not np.allclose(answer(log_w), log_w.mean(axis=0)), "That is the mean of the logs: the ELBO."
    assert np.allclose(answer(log_w), expected), "Compare with log of the mean weight. Did you divide by K?"
    with np.errstate(divide="ignore"):
        far = answer(log_w - [1000, 0, 3000])
    assert np.allclose(far, expected - [1000, 0, 3000]), (
        "It underflows. Take out each example's largest log-weight first."
    )
    print("Exercise 3: right.")


if my_bound(np.zeros((2, 1))) is None:
    print("Exercise 3: your turn.")
else:
    check_3(my_bound)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_bound(log_weights):
#     largest = log_weights.max(axis=0)  # one for each example
#     return largest + np.log(np.exp(log_weights - largest).mean(axis=0))
# ```
#
# Taking out the largest changes nothing in exact arithmetic; it leaves at least one weight equal to 1, so the mean can't underflow.
#
# </details>

# %% [markdown]
# ### Exercise 4: what is left above the floor
#
# The cross-entropy of a grey pixel $x$ with a prediction $p$ is at least its entropy (2.31). Show that the difference is a KL divergence, from the coin with probability $x$ to the coin with probability $p$: write that KL, for
# $0 < x < 1$, elementwise.


# %% tags=["exercise"]
def my_coin_kl(x, p):
    return None  # your code here


# %% tags=["exercise-check"]
def check_4(answer):
    rng = np.random.default_rng(0)
    x, p = rng.uniform(0.01, 0.99, size=(2, 1000))
    assert answer(x, p) is not None, "The function returns nothing yet."
    assert (answer(x, p) >= -1e-12).all(), (
        "A KL divergence is never negative; yours is. Does it sum over both outcomes?"
    )
    cross_entropy = -(x * np.log(p) + (1 - x) * np.log(1 - p))
    floor = -(x * np.log(x) + (1 - x) * np.log(1 - x))
    assert np.allclose(answer(x, p), cross_entropy - floor), "It isn't cross-entropy minus floor."
    print("Exercise 4: right.")


if my_coin_kl(np.array([0.5]), np.array([0.5])) is None:
    print("Exercise 4: your turn.")
else:
    check_4(my_coin_kl)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_coin_kl(x, p):
#     return x * np.log(x / p) + (1 - x) * np.log((1 - x) / (1 - p))
# ```
#
# So "loss minus 45.5" is a sum of KL divergences: it is zero only for a perfect reconstruction.
#
# </details>

# %% [markdown]
# ### Exercise 5: what a diagonal encoder loses
#
# A linear decoder has the posterior (2.22). Write the least gap of a diagonal $q$ as a function of $W$ and the noise variance $s^2$. Use (2.25): you need the posterior's *precision*. Then try $W$ with orthogonal columns.


# %% tags=["exercise"]
def my_gap(W, noise_var):
    return None  # your code here


# %% tags=["exercise-check"]
def check_5(answer):
    rng = np.random.default_rng(0)
    W = rng.normal(size=(6, 3))
    assert answer(W, 0.5) is not None, "The function returns nothing yet."
    orthogonal = np.linalg.qr(W)[0] * [1.0, 2.0, 3.0]
    assert abs(answer(orthogonal, 0.5)) < 1e-10, "With orthogonal columns the gap must be 0."
    precision = np.eye(3) + W.T @ W / 0.5

    def kl_of(log_var):  # zero-mean diagonal q to the posterior, shifted to mean 0
        return 0.5 * (np.diag(precision) @ np.exp(log_var) - 3 - np.linalg.slogdet(precision)[1] - log_var.sum())

    expected = minimize(kl_of, np.zeros(3)).fun
    assert abs(answer(W, 0.5) - expected) < 1e-5, f"A search over diagonal q finds a gap of {expected:.4f} nats."
    print("Exercise 5: right.")


if my_gap(np.eye(2), 1.0) is None:
    print("Exercise 5: your turn.")
else:
    check_5(my_gap)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_gap(W, noise_var):
#     precision = np.eye(W.shape[1]) + W.T @ W / noise_var
#     return 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
# ```
#
# If you took the diagonal of the covariance, you matched the marginals: that is the other direction, KL(p‖q), and (2.8).
#
# </details>

# %% [markdown]
# ## Further reading
#
# - D. P. Kingma & M. Welling, [Auto-Encoding Variational Bayes](https://arxiv.org/abs/1312.6114) (2014): the VAE; the Gaussian KL is in appendix B.
# - D. J. Rezende, S. Mohamed & D. Wierstra, [Stochastic Backpropagation and Approximate Inference in Deep Generative Models](https://arxiv.org/abs/1401.4082) (2014): the same model, found at the same time.
# - S. Kullback & R. A. Leibler, [On Information and Sufficiency](https://doi.org/10.1214/aoms/1177729694) (1951): the divergence.
# - M. I. Jordan, Z. Ghahramani, T. S. Jaakkola & L. K. Saul, [An Introduction to Variational Methods for Graphical Models](https://doi.org/10.1023/A:1007665907178) (1999): the bound before neural networks.
# - R. M. Neal & G. E. Hinton, [A View of the EM Algorithm that Justifies Incremental, Sparse, and Other Variants](https://doi.org/10.1007/978-94-011-5014-9_12) (1998): the bound's two jobs.
# - M. E. Tipping & C. M. Bishop, [Probabilistic Principal Component Analysis](https://doi.org/10.1111/1467-9868.00196) (1999): equation (2.28).
# - Y. Burda, R. Grosse & R. Salakhutdinov, [Importance Weighted Autoencoders](https://arxiv.org/abs/1509.00519) (2015): equation (2.26).
# - M. D. Hoffman & M. J. Johnson, [ELBO surgery](http://approximateinference.org/accepted/HoffmanJohnson2016.pdf) (2016): more ways to take the bound apart.
# - I. Higgins et al., [β-VAE](https://openreview.net/forum?id=Sy2fzU9gl) (2017), and A. A. Alemi et al., [Fixing a Broken ELBO](https://arxiv.org/abs/1711.00464) (2018): rate, distortion and β.
# - M. Rolínek, D. Zietlow & G. Martius, [Variational Autoencoders Pursue PCA Directions (by Accident)](https://arxiv.org/abs/1812.06775) (2019), and J. Lucas et al., [Don't Blame the ELBO!](https://arxiv.org/abs/1911.02469) (2019): the linear VAE.

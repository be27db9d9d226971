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
# # Estimate an average from draws
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/every-equation-executed/vae/blob/main/notebooks/99_my_title.ipynb)
#
# **What you'll do.** Estimate a variance from random numbers, and see how far off you are.
#
# **What you'll learn**
# - to estimate an average from draws;
# - to say how its error shrinks.
#
# **What you'll need.** NumPy, and what a variance is. No GPU.
#
# **Time.** 2 minutes to read, seconds to run. The quick mode makes a tenth of the draws.

# %%
import os
import sys

if "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
    get_ipython().run_line_magic("pip", "install -q --no-deps git+https://github.com/every-equation-executed/vae@main")
    import vae_utils  # if it is missing, pip says why above: is this notebook online? (on Kaggle, switch Internet on)

# %%
import matplotlib.pyplot as plt
import numpy as np

QUICK = os.environ.get("VAE_UTILS_QUICK", "") not in ("", "0")
print("quick run" if QUICK else "full run")

# %% [markdown]
# ## Draw, square, average
#
# For a standard normal $x$ the average of $x^2$ is its variance:
#
# $$\mathbb E[x^2] = 1 \tag{99.1}$$
#
# How close do you come to (99.1) with 10,000 draws?

# %% tags=["eq-99.1"]
x = np.random.default_rng(0).normal(size=1_000 if QUICK else 10_000)
error = np.sqrt(2 / len(x))  # the standard deviation of the mean: x² has the variance 2
assert abs((x**2).mean() - 1) < 4 * error

# %% [markdown]
# Closer than four standard deviations, as nearly always. Now look at the way there. Is the error halved when the draws are
# doubled?

# %% mystnb={"figure": {"caption": "The mean of $x^2$ over more and more draws.", "name": "fig-99-mean"}, "image": {"alt": "A line that jumps about at first and settles near one, beside a dashed line at one."}}
counts = np.arange(1, len(x) + 1)
fig, ax = plt.subplots()
ax.plot(counts, (x**2).cumsum() / counts, color="#0072B2")
ax.axhline(1, color="0.45", linestyle="--")
ax.set(xscale="log", xlabel="draws", ylabel="mean of x²")
plt.show()

# %% [markdown]
# No: four times the draws halve it. The digits of this line are the same in either mode, so the tests compare them:

# %% tags=["nbval-check-output"]
print(f"4 times the draws: {np.sqrt(2 / 400) / np.sqrt(2 / 100):.2f} of the error")

# %% [markdown]
# ## In this notebook
#
# - The mean of $x^2$ estimates the variance.
# - Its error shrinks with the square root of the number of draws.
#
# ## Exercises
#
# Each has a stub for you to fill in, a cell that checks your answer, and a solution to unfold.
#
# ### Exercise 1: the error
#
# Write the standard deviation of the mean of `n` values with the variance `var`.


# %% tags=["exercise"]
def my_error(var, n):
    return None  # your code here


# %% tags=["exercise-check"]
def check_1(answer):
    assert answer(1.0, 1) is not None, "The function returns nothing yet."
    assert np.isclose(answer(4.0, 100), 0.2), "Four times the draws halve the error."
    print("Exercise 1: right.")


if my_error(1.0, 1) is None:
    print("Exercise 1: your turn.")
else:
    check_1(my_error)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_error(var, n):
#     return np.sqrt(var / n)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2: draws
#
# How many draws does an error of 0.01 take, for the variance 2?

# %% tags=["exercise"]
my_draws = None  # your number here


# %% tags=["exercise-check"]
def check_2(answer):
    assert answer is not None, "There is no number yet."
    assert np.isclose(np.sqrt(2 / answer), 0.01), "Which n makes the square root of 2/n 0.01?"
    print("Exercise 2: right.")


if my_draws is None:
    print("Exercise 2: your turn.")
else:
    check_2(my_draws)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# my_draws = 20_000
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3: another density
#
# What is the average of $x^2$ for a uniform $x$ between 0 and `a`?


# %% tags=["exercise"]
def my_average(a):
    return None  # your code here


# %% tags=["exercise-check"]
def check_3(answer):
    assert answer(1.0) is not None, "The function returns nothing yet."
    grid = np.linspace(0, 3, 100_001)
    assert np.isclose(answer(3.0), (grid**2).mean(), atol=1e-3), "Compare with a sum over a fine grid."
    print("Exercise 3: right.")


if my_average(1.0) is None:
    print("Exercise 3: your turn.")
else:
    check_3(my_average)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_average(a):
#     return a**2 / 3
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4: the fourth power
#
# What is the average of $x^4$ for a standard normal $x$?

# %% tags=["exercise"]
my_fourth = None  # your number here


# %% tags=["exercise-check"]
def check_4(answer):
    assert answer is not None, "There is no number yet."
    grid = np.linspace(-12, 12, 100_001)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    assert np.isclose(np.trapezoid(grid**4 * density, grid), answer), "Compare with quadrature."
    print("Exercise 4: right.")


if my_fourth is None:
    print("Exercise 4: your turn.")
else:
    check_4(my_fourth)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# my_fourth = 3
# ```
#
# So the variance of $x^2$ is $3 - 1 = 2$.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - D. P. Kingma & M. Welling, [Auto-Encoding Variational Bayes](https://arxiv.org/abs/1312.6114) (2014): averages that are estimated from one draw.

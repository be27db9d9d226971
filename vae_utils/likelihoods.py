"""Likelihoods p(x | z): what the decoder's numbers mean for the pixels."""

from numbers import Integral, Real

import keras
import numpy as np
from keras import ops

from vae_utils._validation import as_numbers, check_pixels
from vae_utils.distributions import bernoulli_log_prob, gaussian_log_prob


class Likelihood(keras.layers.Layer):
    """Distribution of the pixels, given what the decoder gives for them. The base of all likelihoods.

    Write your own with three methods, and with `keras.saving.register_keras_serializable` before the class:

    ```python
    class Laplace(Likelihood):
        def log_prob(self, x, parameters):
            return -ops.sum(ops.abs(x - parameters) + np.log(2.0), axis=(1, 2, 3))

        def mean(self, parameters):
            return parameters

        def sample(self, parameters, seed=None):
            u = keras.random.uniform(ops.shape(parameters), -1, 1, self.compute_dtype, seed)
            return parameters - ops.sign(u) * ops.log1p(-ops.abs(u))
    ```

    Called on parameters, the layer returns the mean. It computes in 32 bits or more, whatever the model does.

    Attributes:
        parameters_per_pixel: k; the decoder's last axis holds k times the images' channels, parameter by parameter.
        lowest, highest: Ends of the range of values that a pixel may have.
        takes_logits: Whether the decoder must end in a linear layer.
        highest_loss: Nats per number above which training has diverged, not started badly.
    """

    parameters_per_pixel = 1
    lowest, highest = -np.inf, np.inf
    takes_logits = False
    highest_loss = np.inf

    def __init__(self, **kwargs):
        if kwargs.get("dtype") is None:
            kwargs["dtype"] = keras.backend.result_type(keras.config.dtype_policy().variable_dtype, "float32")
        super().__init__(**kwargs)

    def call(self, parameters):
        return self.mean(parameters)

    def log_prob(self, x, parameters):
        """Log-probability of pixels.

        Args:
            x: Pixels, shape `(batch, …, channels)`.
            parameters: What the decoder gives, shape `(batch, …, channels * parameters_per_pixel)`.

        Returns:
            Nats, shape `(batch,)`: summed over the pixels.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `log_prob(x, parameters)`.")

    def mean(self, parameters):
        """Mean of the pixels, shape `(batch, …, channels)`."""
        raise NotImplementedError(f"{type(self).__name__} must define `mean(parameters)`.")

    def sample(self, parameters, seed=None):
        """Pixels drawn from the distribution, shape `(batch, …, channels)`."""
        raise NotImplementedError(f"{type(self).__name__} must define `sample(parameters, seed)`.")

    def check(self, x):
        """Return `x` as an array; raise `ValueError` if a pixel has a value that this likelihood does not take."""
        return check_pixels(x, self.lowest, self.highest)

    def pairwise_log_prob(self, x, parameters):
        """Log-probability of each of n images under each of m parameters, shape `(n, m)`."""
        return ops.stack([self.log_prob(x[i : i + 1], parameters) for i in range(len(x))])


@keras.saving.register_keras_serializable("vae_utils")
class Bernoulli(Likelihood):
    """Independent coins. The decoder gives logits.

    For grey pixels the log-probability is the expected one of pixels drawn with these greys as probabilities.
    """

    lowest, highest = 0, 1
    takes_logits = True
    highest_loss = 1e4  # an untrained model needs log 2 nats a pixel

    def log_prob(self, x, parameters):
        return bernoulli_log_prob(x, parameters)

    def mean(self, parameters):
        return ops.sigmoid(parameters)

    def sample(self, parameters, seed=None):
        u = keras.random.uniform(ops.shape(parameters), dtype=self.compute_dtype, seed=seed)
        return ops.cast(u < ops.sigmoid(parameters), self.compute_dtype)

    def pairwise_log_prob(self, x, parameters):
        # It is linear in x: one matrix product gives it for every pair.
        x, logits = (ops.reshape(part, (len(part), -1)) for part in (x, parameters))
        return ops.matmul(x, ops.transpose(logits)) - ops.sum(ops.softplus(logits), axis=1)


@keras.saving.register_keras_serializable("vae_utils")
class ContinuousBernoulli(Likelihood):
    """Densities on [0, 1] that grow or fall exponentially, p(x) ∝ exp(a x). The decoder gives a.

    Source: Loaiza-Ganem & Cunningham (2019), https://arxiv.org/abs/1907.06845.
    """

    lowest, highest = 0, 1
    takes_logits = True
    highest_loss = 1e4

    def log_prob(self, x, parameters):
        # ∫ exp(a (x − ½)) dx over [0, 1] is sinh(h) / h, h = a / 2.
        h = parameters / 2
        log_integral = self._away_from_zero(
            h,
            lambda h: ops.abs(h) + ops.log1p(-ops.exp(-2 * ops.abs(h))) - ops.log(2 * ops.abs(h)),
            lambda h: h**2 / 6 - h**4 / 180,
        )
        return _sum_over_pixels(parameters * (x - 0.5) - log_integral)

    def mean(self, parameters):
        h = parameters / 2
        langevin = self._away_from_zero(h, lambda h: 1 / ops.tanh(h) - 1 / h, lambda h: h / 3 - h**3 / 45)
        return 0.5 + 0.5 * langevin

    def sample(self, parameters, seed=None):
        u = keras.random.uniform(ops.shape(parameters), dtype=self.compute_dtype, seed=seed)
        falling = self._away_from_zero(  # the inverse of the distribution function, for a < 0
            -ops.abs(parameters), lambda a: ops.log1p(u * ops.expm1(a)) / a, lambda a: u + a * u * (1 - u) / 2, 1e-3
        )
        return ops.where(parameters > 0, 1 - falling, falling)

    @staticmethod
    def _away_from_zero(h, formula, series, radius=0.1):
        """`formula(h)`, or near 0, where it divides 0 by 0, `series(h)`; with gradients that are finite in both."""
        near = ops.abs(h) < radius
        return ops.where(near, series(h), formula(ops.where(near, ops.ones_like(h), h)))


@keras.saving.register_keras_serializable("vae_utils")
class Gaussian(Likelihood):
    """Independent Gaussians. The decoder gives means, and after them log-variances where each pixel has its own.

    Args:
        scale: Standard deviation σ: a number; or `"learned"`, one for all pixels, which starts at 1; or
            `"per_pixel"`, from the decoder, with two parameters for each pixel.
        min_scale: Least standard deviation of the two latter, σ² = min_scale² + exp(log-variance). With none, a pixel
            that is the same in all images would make the density grow without end.

    Raises:
        ValueError: If `scale` is none of these, or a scale is not positive.
    """

    def __init__(self, scale=1.0, min_scale=1e-2, **kwargs):
        super().__init__(**kwargs)
        is_number = not (isinstance(scale, str) and scale in ("learned", "per_pixel"))
        numbers = [min_scale, scale] if is_number else [min_scale]
        if not all(isinstance(number, Real) and 0 < number < np.inf for number in numbers):
            raise ValueError(
                '`scale` must be a positive number, "learned" or "per_pixel", and `min_scale` a positive number. '
                f"Received: scale={scale!r}, min_scale={min_scale!r}"
            )
        self.scale = float(scale) if is_number else scale
        self.min_scale = float(min_scale)
        self.parameters_per_pixel = 2 if scale == "per_pixel" else 1
        if scale == "learned":
            self.log_var = self.add_weight(shape=(), initializer="zeros", name="log_var")

    def _split(self, parameters):
        """Means and log-variances, which have the same shape or broadcast."""
        if self.scale == "per_pixel":
            means, log_var = ops.split(parameters, 2, axis=-1)
        elif self.scale == "learned":
            means, log_var = parameters, self.log_var + ops.zeros_like(parameters)
        else:
            return parameters, 2 * np.log(self.scale) + ops.zeros_like(parameters)
        return means, ops.logaddexp(log_var, 2 * np.log(self.min_scale) + ops.zeros_like(log_var))

    def log_prob(self, x, parameters):
        means, log_var = self._split(parameters)
        return gaussian_log_prob(*(ops.reshape(part, (ops.shape(part)[0], -1)) for part in (x, means, log_var)))

    def mean(self, parameters):
        return self._split(parameters)[0]

    def sample(self, parameters, seed=None):
        means, log_var = self._split(parameters)
        epsilon = keras.random.normal(ops.shape(means), dtype=self.compute_dtype, seed=seed)
        return means + ops.exp(log_var / 2) * epsilon

    def get_config(self):
        return {**super().get_config(), "scale": self.scale, "min_scale": self.min_scale}


@keras.saving.register_keras_serializable("vae_utils")
class DiscretizedLogistic(Likelihood):
    """Probabilities of evenly spaced grey levels in [0, 1]: of the cells around them under a logistic distribution.

    The decoder gives locations m, and after them log-scales log s. The first and the last level take the tails.

    Args:
        levels: Number of levels, 256 for pixels of 8 bits.

    Raises:
        ValueError: If `levels` is not an integer above 1.

    Source: Salimans et al. (2017), https://arxiv.org/abs/1701.05517, section 2.1.
    """

    parameters_per_pixel = 2
    lowest, highest = 0, 1

    def __init__(self, levels=256, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(levels, Integral) or levels < 2:
            raise ValueError(f"`levels` must be an integer, 2 or more. Received: {levels!r}")
        self.levels = int(levels)

    def check(self, x):
        x = super().check(x)
        steps = np.asarray(x, "float32") * (self.levels - 1)
        if x.size and np.abs(steps - steps.round()).max() > 0.1:  # 16 bits miss a level of 256 by 0.06 steps
            raise ValueError(
                f"Pixels must lie on {self.levels} levels, k / {self.levels - 1}. "
                f"Received: {as_numbers(x).ravel()[np.abs(steps - steps.round()).argmax()]:g} among them"
            )
        return x

    def _split(self, parameters):
        location, log_scale = ops.split(parameters, 2, axis=-1)
        return location, ops.exp(ops.maximum(log_scale, -7.0))  # as the source does, against a division by 0

    def log_prob(self, x, parameters):
        location, scale = self._split(parameters)
        half = 0.5 / (self.levels - 1)
        upper, lower = (x + half - location) / scale, (x - half - location) / scale
        below = -ops.softplus(-upper)  # log-probability of what lies below the cell's upper end
        above = -ops.softplus(lower)
        # σ(u) − σ(l) = σ(u) σ(−l) (1 − exp(l − u)), in which nothing cancels
        within = below + above + ops.log(-ops.expm1(-2 * half / scale))
        return _sum_over_pixels(ops.where(x < half, below, ops.where(x > 1 - half, above, within)))

    def mean(self, parameters):
        """Mean of the logistic, what lies outside [0, 1] counted at its ends; the levels' own is within half a step."""
        location, scale = self._split(parameters)
        return scale * (ops.softplus(location / scale) - ops.softplus((location - 1) / scale))

    def sample(self, parameters, seed=None):
        location, scale = self._split(parameters)
        u = keras.random.uniform(ops.shape(location), 1e-6, 1 - 1e-6, dtype=self.compute_dtype, seed=seed)
        drawn = ops.clip(location + scale * (ops.log(u) - ops.log1p(-u)), 0, 1)
        return ops.round(drawn * (self.levels - 1)) / (self.levels - 1)

    def get_config(self):
        return {**super().get_config(), "levels": self.levels}


_BY_NAME = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "discretized_logistic": DiscretizedLogistic,
}


def get(likelihood):
    """Return a `Likelihood`: the one given, or a new one by its name, such as `"bernoulli"`.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str) or likelihood not in _BY_NAME:
        raise ValueError(f"`likelihood` must be a `Likelihood` or one of {sorted(_BY_NAME)}. Received: {likelihood!r}")
    return _BY_NAME[likelihood]()


def _sum_over_pixels(values):
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))

"""Likelihoods against 30-digit arithmetic, quadrature and statistical tests, and each one inside a VAE.

Statistical tests have the level 1e-4, and their seeds are fixed.
"""

import inspect
import re

import keras
import mpmath
import numpy as np
import pytest
from keras import ops
from scipy import special, stats

from vae_utils import likelihoods
from vae_utils.architectures import dense_vae
from vae_utils.likelihoods import Bernoulli, ContinuousBernoulli, DiscretizedLogistic, Gaussian, Likelihood
from vae_utils.models import VAE

mpmath.mp.dps = 30


def laplace_of_the_docstring():
    """The class that `Likelihood`'s docstring shows a reader, defined and registered as it says."""
    [code] = re.findall(r"```python\n(.*?)```", inspect.getdoc(Likelihood), re.DOTALL)
    assert 5 < len([line for line in code.splitlines() if line.strip()]) <= 10, "a likelihood in ten lines"
    names = {"__name__": __name__, "Likelihood": Likelihood, "keras": keras, "ops": ops, "np": np}
    exec('@keras.saving.register_keras_serializable("tests")\n' + code, names)
    return names["Laplace"]


Laplace = laplace_of_the_docstring()

ALL = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "gaussian, σ = 0.3": lambda **options: Gaussian(0.3, **options),
    "gaussian, learned": lambda **options: Gaussian("learned", **options),
    "gaussian, per pixel": lambda **options: Gaussian("per_pixel", **options),
    "discretized_logistic": DiscretizedLogistic,
    "Laplace": Laplace,
}


def numpy(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def as_batch(values):
    """Values, one an image of one pixel; or rows of k parameters."""
    values = np.asarray(values, "float32")
    return values.reshape(len(values), 1, 1, -1)


def log_prob(likelihood, x, parameters):
    return numpy(likelihood.log_prob(ops.convert_to_tensor(x), ops.convert_to_tensor(parameters)))


# What each likelihood should give for one pixel, in 30 digits.


def bernoulli(x, a):
    return -x * mpmath.log1p(mpmath.exp(-a)) - (1 - x) * mpmath.log1p(mpmath.exp(a))


def continuous_bernoulli(x, a):
    return a * x - (mpmath.log(mpmath.expm1(a) / a) if a else 0)


def gaussian(x, mean, log_var=0.0):
    variance = mpmath.mpf("1e-4") + mpmath.exp(log_var)
    return -(mpmath.log(2 * mpmath.pi * variance) + (x - mean) ** 2 / variance) / 2


def discretized_logistic(x, location, log_scale):
    level, scale = round(255 * x), mpmath.exp(max(log_scale, -7))

    def below(edge):
        return 1 / (1 + mpmath.exp(-(edge / mpmath.mpf(255) - location) / scale))

    def above(edge):
        return 1 / (1 + mpmath.exp((edge / mpmath.mpf(255) - location) / scale))

    if level == 0:
        return mpmath.log(below(0.5))
    if level == 255:
        return mpmath.log(above(254.5))
    # the difference of the smaller tails, so that thirty digits are enough
    tail, ends = (below, (level + 0.5, level - 0.5)) if x < location else (above, (level - 0.5, level + 0.5))
    with mpmath.workdps(2000 if abs(x - location) / scale > 30 else 60):
        return mpmath.log(tail(ends[0]) - tail(ends[1]))


def laplace(x, location):
    return -abs(x - location) - mpmath.log(2)


PIXELS = [0.0, 1.0, 0.2, 128 / 255]
LOGITS = [0.0, 1e-8, -1e-8, 1e-3, -1e-3, 0.19, 0.21, -0.19, -0.21, 1.0, -1.0, 20.0, -20.0, 90.0, -90.0, 1e4, -1e4]
MEANS = [0.0, -3.0, 0.4, 100.0]
#: Formula, and the parameters of a pixel: ordinary ones, and as large and as small as an unlucky decoder gives.
EXPECTED = {
    "bernoulli": (bernoulli, [[a] for a in LOGITS]),
    "continuous_bernoulli": (continuous_bernoulli, [[a] for a in LOGITS]),
    "gaussian": (lambda x, mean: -(mpmath.log(2 * mpmath.pi) + (x - mean) ** 2) / 2, [[mean] for mean in MEANS]),
    "gaussian, σ = 0.3": (
        lambda x, mean: -mpmath.log(mpmath.mpf(0.3)) - (mpmath.log(2 * mpmath.pi) + ((x - mean) / 0.3) ** 2) / 2,
        [[mean] for mean in MEANS],
    ),
    "gaussian, learned": (gaussian, [[mean] for mean in MEANS]),  # its log-variance starts at 0
    "gaussian, per pixel": (gaussian, [[mean, v] for mean in MEANS for v in (-200.0, -9.21, -3.0, 0.0, 5.0, 80.0)]),
    "discretized_logistic": (
        discretized_logistic,
        [[m, s] for m in (-5.0, 0.0, 0.5, 1.0, 3.0) for s in (-50.0, -7.0, -4.0, 0.0, 5.0, 20.0)],
    ),
    "Laplace": (laplace, [[mean] for mean in MEANS]),
}


@pytest.fixture(params=ALL)
def name(request):
    return request.param


def test_log_prob_of_every_pixel_also_at_extreme_parameters(name):
    formula, parameters = EXPECTED[name]
    pairs = [(np.float32(x), np.float32(row)) for x in PIXELS for row in parameters]
    found = log_prob(ALL[name](), as_batch([x for x, _ in pairs]), as_batch([row for _, row in pairs]))
    expected = [float(formula(mpmath.mpf(float(x)), *map(float, row))) for x, row in pairs]
    # In float32 a pixel is known to 6e-8; divided by the least scale of the logistic, exp(−7), that is 1e-4. The
    # others add terms as large as the parameter.
    rounding = 2e-4 if name == "discretized_logistic" else [2e-6 + 6e-8 * np.abs(row).max() for _, row in pairs]
    np.testing.assert_array_less(np.abs(found - expected), rounding + 3e-6 * np.abs(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_log_prob_adds_pixels_and_channels_and_takes_parameters_one_after_the_other(name, channels):
    formula, likelihood = EXPECTED[name][0], ALL[name]()
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 256, (3, 2, 4, channels)) / 255).astype("float32")
    k = likelihood.parameters_per_pixel
    parameters = rng.normal(size=(3, 2, 4, channels * k)).astype("float32")
    parts = np.split(parameters, k, axis=-1)  # all means, then all log-variances: not by turns
    expected = [
        sum(float(formula(mpmath.mpf(float(pixel)), *map(float, row))) for pixel, *row in zip(*flat, strict=True))
        for flat in zip(*(part.reshape(3, -1) for part in (x, *parts)), strict=True)
    ]
    np.testing.assert_allclose(log_prob(likelihood, x, parameters), expected, rtol=1e-5)
    assert likelihood.mean(ops.convert_to_tensor(parameters)).shape == x.shape
    assert likelihood.sample(ops.convert_to_tensor(parameters), seed=0).shape == x.shape


def nodes(name):
    """Points and weights that integrate, or add up, over all values of a pixel."""
    if name == "bernoulli":
        return np.array([0.0, 1.0]), np.ones(2)
    if name == "discretized_logistic":
        return np.arange(256) / 255, np.ones(256)
    low, high = (0, 1) if name == "continuous_bernoulli" else (-40, 40)
    n = 20_000  # the midpoint rule
    return low + (high - low) * (np.arange(n) + 0.5) / n, np.full(n, (high - low) / n)


MODERATE = {
    "bernoulli": [[a] for a in (-3.0, 0.0, 0.4)],
    "continuous_bernoulli": [[a] for a in (0.0, 1e-4, -0.19, 0.21, 3.0, -30.0, 500.0)],
    "gaussian, per pixel": [[0.5, v] for v in (-20.0, -4.0, 0.0, 3.0)],
    "discretized_logistic": [[m, s] for m in (-0.3, 0.0, 0.501, 1.2) for s in (-20.0, -4.0, -1.0, 2.0)],
}


def test_probabilities_add_up_to_one_and_their_mean_is_the_mean(name):
    likelihood = ALL[name]()
    x, weights = nodes(name)
    for row in MODERATE.get(name, [[0.5]]):
        row = as_batch([row])
        p = weights * np.exp(log_prob(likelihood, as_batch(x), np.repeat(row, len(x), axis=0)))
        assert p.sum() == pytest.approx(1, abs=2e-4)
        # The discretized logistic says of its mean that it is within half a step of that of the levels.
        tolerance = 0.5 / 255 if name == "discretized_logistic" else 2e-4
        assert float(numpy(likelihood.mean(row)).item()) == pytest.approx((p * x).sum(), abs=tolerance)


@pytest.mark.parametrize("levels", [2, 3, 16])
def test_any_number_of_levels_adds_up_to_one(levels):
    likelihood = DiscretizedLogistic(levels)
    x = as_batch(np.arange(levels) / (levels - 1))
    for row in ([0.2, -3.0], [0.9, 0.0], [7.0, -50.0]):
        p = np.exp(log_prob(likelihood, x, np.repeat(as_batch([row]), levels, axis=0)))
        assert p.sum() == pytest.approx(1, abs=1e-5)


def test_the_logistics_mean_is_that_of_the_clipped_logistic():
    rows = [[m, s] for m in (-2.0, 0.0, 0.3, 1.0, 4.0) for s in (-7.0, -2.0, 0.0, 3.0)]
    u = (np.arange(200_000) + 0.5) / 200_000
    expected = [np.clip(m + np.exp(s) * special.logit(u), 0, 1).mean() for m, s in rows]
    np.testing.assert_allclose(numpy(DiscretizedLogistic().mean(as_batch(rows))).ravel(), expected, atol=2e-5)


@pytest.mark.parametrize("a", [0.0, 1e-8, 0.01, -0.19, 0.21, 5.0, -60.0, 1e3, -1e4])
def test_mean_of_the_continuous_bernoulli_everywhere(a):
    a = float(np.float32(a))
    expected = 0.5 if a == 0 else float(1 / (1 - mpmath.exp(-mpmath.mpf(a))) - 1 / mpmath.mpf(a))
    assert numpy(ContinuousBernoulli().mean(as_batch([a]))).item() == pytest.approx(expected, rel=1e-5, abs=2e-6)


class _Ascent(keras.Model):
    """Takes one step along the gradient of log p(x | parameters), on any backend."""

    def __init__(self, likelihood, x, parameters):
        super().__init__()
        self.likelihood, self.x = likelihood, ops.convert_to_tensor(x)
        self.parameters_ = self.add_weight(shape=parameters.shape, initializer="zeros", name="parameters")
        self.parameters_.assign(parameters)

    def build(self, input_shape):
        pass

    def call(self, x):
        return x

    def compute_loss(self, *args, **kwargs):
        return -ops.sum(self.likelihood.log_prob(self.x, ops.convert_to_tensor(self.parameters_)))


def gradients(likelihood, x, parameters):
    model = _Ascent(likelihood, x, parameters)
    model.compile(keras.optimizers.SGD(1.0), run_eagerly=keras.backend.backend() != "jax")
    model.train_on_batch(x)
    return numpy(model.parameters_) - parameters


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli"])
def test_gradients_are_what_the_mean_misses(name):
    """In an exponential family d log p(x | a) / da = x − E[x]; the mean is checked above."""
    likelihood = ALL[name]()
    a = np.array([0, 1e-12, -1e-6, 0.05, 0.19, -0.21, 1, -5, 30, -60])
    x, a = as_batch(np.linspace(0, 1, len(a))), as_batch(a)
    np.testing.assert_allclose(gradients(likelihood, x, a), x - numpy(likelihood.mean(a)), atol=5e-6)


def test_gradients_are_finite_at_extreme_parameters(name):
    parameters = EXPECTED[name][1]
    for x in PIXELS:
        found = gradients(ALL[name](), as_batch([x] * len(parameters)), as_batch(parameters))
        assert np.isfinite(found).all()


def test_a_gaussian_with_a_scale_for_each_pixel_has_the_floor_as_its_least_variance():
    x, means = as_batch([0.5]), 0.5
    for log_var in (-200.0, -9.0, 0.0, 3.0):
        variance = -2 * log_prob(Gaussian("per_pixel", min_scale=0.2), x, as_batch([[means, log_var]])).item()
        assert np.exp(variance) / (2 * np.pi) == pytest.approx(0.2**2 + np.exp(log_var), rel=1e-5)


def test_the_learned_scale_is_one_weight_for_all_pixels():
    likelihood = Gaussian("learned", min_scale=0.1)
    [weight] = likelihood.trainable_variables
    assert weight.shape == () and float(weight) == 0
    weight.assign(-3.0)
    x = np.random.default_rng(0).normal(size=(5, 2, 2, 3)).astype("float32")
    expected = stats.norm.logpdf(x, 0.2, np.sqrt(0.1**2 + np.exp(-3))).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(log_prob(likelihood, x, np.full_like(x, 0.2)), expected, rtol=1e-5)
    drawn = numpy(likelihood.sample(np.zeros((20_000, 1, 1, 1), "float32"), seed=0)).ravel()
    assert stats.kstest(drawn, stats.norm(0, np.sqrt(0.1**2 + np.exp(-3))).cdf).pvalue > 1e-4
    assert not Gaussian().trainable_variables and not Gaussian("per_pixel").trainable_variables


def p_value(name, drawn, parameters):
    """Of the hypothesis that the pixels come from where they should."""
    if name == "bernoulli":
        assert set(drawn) <= {0.0, 1.0}
        return stats.binomtest(int(drawn.sum()), len(drawn), special.expit(parameters[0])).pvalue
    if name == "continuous_bernoulli":
        a = parameters[0]
        return stats.kstest(drawn, lambda x: np.expm1(a * x) / np.expm1(a) if a else x).pvalue
    if name == "discretized_logistic":
        counts = np.bincount((drawn * 255).round().astype(int), minlength=256)
        edges = (np.arange(257) - 0.5) / 255
        edges[0], edges[-1] = -np.inf, np.inf
        expected = len(drawn) * np.diff(special.expit((edges - parameters[0]) / np.exp(max(parameters[1], -7))))
        common = expected > 5  # the usual rule for the chi-squared test; the rare ones are put with the first
        assert common.sum() > 2
        observed, expected = (
            np.append(part[common][1:], part[~common].sum() + part[common][0]) for part in (counts, expected)
        )
        return stats.chisquare(observed, expected).pvalue
    if name == "Laplace":
        return stats.kstest(drawn, stats.laplace(parameters[0]).cdf).pvalue
    scale = {"gaussian, σ = 0.3": 0.3, "gaussian, per pixel": np.sqrt(1e-4 + np.exp(parameters[-1]))}.get(name)
    scale = np.sqrt(1 + 1e-4 * (name == "gaussian, learned")) if scale is None else scale
    return stats.kstest(drawn, stats.norm(parameters[0], scale).cdf).pvalue


SAMPLED = {
    "bernoulli": [[-3.0], [0.0], [1.0]],
    "continuous_bernoulli": [[a] for a in (0.0, 5e-4, -5e-4, 0.05, -0.4, 2.0, -2.0, 40.0, -40.0)],
    "gaussian, per pixel": [[0.0, -20.0], [3.0, 2.0], [-1.0, 0.0]],
    "discretized_logistic": [[0.5, -3.0], [1.0, -50.0], [0.0, -1.0], [0.3, 1.0]],
}


def test_samples_follow_the_distribution(name):
    rows = np.array(SAMPLED.get(name, [[-1.0], [0.5], [2.0]]), "float32")
    n = 20_000
    # the rows as channels: all first parameters, then all second ones
    parameters = np.broadcast_to(rows.T.reshape(1, 1, 1, -1), (n, 1, 1, rows.size))
    drawn = numpy(ALL[name]().sample(ops.convert_to_tensor(parameters), seed=7)).reshape(n, -1)
    for pixels, row in zip(drawn.T, rows, strict=True):
        assert p_value(name, pixels, row.astype("float64")) > 1e-4, row
    # channels are independent of one another
    correlations = np.corrcoef(drawn.T)[np.triu_indices(len(rows), 1)]
    assert np.abs(correlations).max() < stats.norm.isf(1e-4 / len(correlations) / 2) / np.sqrt(n)


@pytest.mark.parametrize("a", [5e-4, 9e-4, 1.1e-3, 0.1, 3.0, 50.0])
def test_samples_of_the_continuous_bernoulli_are_quantiles_also_near_zero(a):
    """There no statistical test would see that a term is wrong. At a = 0 the quantiles are the uniform numbers."""
    u, falling, growing = (
        numpy(ContinuousBernoulli().sample(np.full((1_000, 1), value, "float32"), seed=3)) for value in (0.0, -a, a)
    )
    expected = np.log1p(u * np.expm1(-a)) / -a
    # Four operations near 1, each rounded by 6e-8, of which the division carries the error of what it divides.
    np.testing.assert_allclose(falling, expected, rtol=1e-6, atol=6e-7)
    np.testing.assert_allclose(growing, 1 - expected, rtol=1e-6, atol=6e-7)


def test_samples_are_values_that_the_likelihood_takes(name):
    likelihood = ALL[name]()
    parameters = np.array(EXPECTED[name][1], "float32")
    drawn = numpy(likelihood.sample(np.tile(as_batch(parameters), (50, 1, 1, 1)), seed=1))
    assert np.isfinite(drawn).all()
    likelihood.check(drawn)


def test_the_same_seed_gives_the_same_pixels(name):
    likelihood = ALL[name]()
    parameters = ops.zeros((50, 2, 2, 2))

    def sample(seed=None):
        return numpy(likelihood.sample(parameters, seed=seed))

    np.testing.assert_array_equal(sample(3), sample(3))
    assert not np.array_equal(sample(3), sample(4))
    assert not np.array_equal(sample(), sample())
    generator = keras.random.SeedGenerator(3)
    assert not np.array_equal(sample(generator), sample(generator))


def test_every_image_under_every_parameter_is_log_prob_pair_by_pair(name):
    likelihood = ALL[name]()
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 256, (3, 2, 2, 3)) / 255).astype("float32")
    parameters = rng.normal(size=(4, 2, 2, 3 * likelihood.parameters_per_pixel)).astype("float32")
    pairs = likelihood.pairwise_log_prob(ops.convert_to_tensor(x), ops.convert_to_tensor(parameters))
    expected = [[log_prob(likelihood, x[[i]], parameters[[j]]).item() for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(numpy(pairs), expected, rtol=1e-5)


RANGE, REAL = "Pixels must lie in [0, 1].", "Pixels must lie in (-∞, ∞)."
BYTES = "values from 0 to 255. Divide by 255 first."


@pytest.mark.parametrize(
    ("likelihood", "x", "message"),
    [
        (Bernoulli(), [0, 2], f"{RANGE} Received: values from 0 to 2. Divide by 255 first."),
        (Bernoulli(), [-0.5, 1], f"{RANGE} Received: values from -0.5 to 1."),
        (Bernoulli(), [-1, 255], f"{RANGE} Received: values from -1 to 255."),
        (Bernoulli(), [0, np.nan, np.nan], f"{RANGE} Received: 2 values that are NaN."),
        (ContinuousBernoulli(), [0, 255], f"{RANGE} Received: {BYTES}"),
        (Gaussian(), [0, np.nan], f"{REAL} Received: 1 values that are NaN."),
        (Gaussian(), [0, np.inf], f"{REAL} Received: values from 0 to inf."),
        (Gaussian("per_pixel"), [-np.inf, 0], f"{REAL} Received: values from -inf to 0."),
        (DiscretizedLogistic(), [0, 2], f"{RANGE} Received: values from 0 to 2. Divide by 255 first."),
        (DiscretizedLogistic(), [0, 0.3, 1], "Pixels must lie on 256 levels, k / 255. Received: 0.3 among them"),
        (DiscretizedLogistic(), [0.5, 1], "Pixels must lie on 256 levels, k / 255. Received: 0.5 among them"),
        (DiscretizedLogistic(5), [0.5, 0.3], "Pixels must lie on 5 levels, k / 4. Received: 0.3 among them"),
        (Laplace(), [np.nan], f"{REAL} Received: 1 values that are NaN."),
        (Gaussian(), ["a"], "`x` must hold numbers. Received: dtype <U1"),
    ],
)
def test_pixels_that_a_likelihood_does_not_take_are_named(likelihood, x, message):
    with pytest.raises(ValueError) as caught:
        likelihood.check(np.array(x))
    assert str(caught.value) == message


def test_pixels_that_a_likelihood_takes_pass_unchanged():
    bytes_ = np.arange(256) / 255
    for x in (bytes_, bytes_.astype("float32"), bytes_.astype("float16")):
        for likelihood in (Bernoulli(), ContinuousBernoulli(), Gaussian(), DiscretizedLogistic()):
            assert likelihood.check(x) is x
    for likelihood in (Gaussian(), Gaussian("learned"), Laplace()):
        likelihood.check(np.array([-1e9, 1e9]))
    for x in (np.array([True, False]), np.array([0, 1], "uint8")):
        Bernoulli().check(x)
        DiscretizedLogistic(2).check(x)


SCALES = '`scale` must be a positive number, "learned" or "per_pixel"'


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gaussian(0), SCALES + ".*scale=0,"),
        (lambda: Gaussian(-1.0), SCALES + ".*scale=-1.0"),
        (lambda: Gaussian(float("nan")), SCALES + ".*scale=nan"),
        (lambda: Gaussian(float("inf")), SCALES + ".*scale=inf"),
        (lambda: Gaussian("fixed"), SCALES + ".*scale='fixed'"),
        (lambda: Gaussian(None), SCALES + ".*scale=None"),
        (lambda: Gaussian(np.array([0.1, 0.2])), SCALES + r".*scale=array\(\[0.1, 0.2\]\)"),
        (lambda: Gaussian("learned", min_scale=0), SCALES + ".*scale='learned', min_scale=0"),
        (lambda: Gaussian("per_pixel", min_scale=-1), "min_scale=-1"),
        (lambda: Gaussian(1.0, min_scale="0.1"), "min_scale='0.1'"),
        (lambda: DiscretizedLogistic(1), "`levels` must be an integer, 2 or more. Received: 1"),
        (lambda: DiscretizedLogistic(2.5), "`levels` must be an integer.*2.5"),
        (lambda: DiscretizedLogistic(True), "`levels` must be an integer.*True"),
        (lambda: DiscretizedLogistic("256"), "`levels` must be an integer.*'256'"),
        (lambda: likelihoods.get("poisson"), "one of .*'bernoulli', 'continuous_bernoulli'.*Received: 'poisson'"),
        (lambda: likelihoods.get("Bernoulli"), "Received: 'Bernoulli'"),
        (lambda: likelihoods.get(None), "Received: None"),
        (lambda: likelihoods.get(Bernoulli), "must be a `Likelihood`.*Received: <class"),
        (lambda: dense_vae((2, 2, 1), (2,), likelihood="poisson"), "Received: 'poisson'"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_numbers_of_numpy_are_numbers():
    x = np.array([0.1, 0.5], "float32")
    config = Gaussian(x.std(), min_scale=x.min()).get_config()
    assert config["scale"] == pytest.approx(0.2) and {type(config[key]) for key in ("scale", "min_scale")} == {float}
    assert type(DiscretizedLogistic(np.int64(16)).get_config()["levels"]) is int


def test_a_copy_from_the_configuration_has_the_same_arguments():
    for likelihood in (Gaussian(0.2), Gaussian("per_pixel", min_scale=0.3), DiscretizedLogistic(16)):
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(likelihood))
        arguments = ("scale", "min_scale", "levels", "parameters_per_pixel", "name", "dtype")
        assert [getattr(copy, name, None) for name in arguments] == [
            getattr(likelihood, name, None) for name in arguments
        ]


def test_a_likelihood_goes_by_its_name():
    names = ["bernoulli", "continuous_bernoulli", "gaussian", "discretized_logistic"]
    assert [type(likelihoods.get(name)) for name in names] == [
        Bernoulli, ContinuousBernoulli, Gaussian, DiscretizedLogistic
    ]  # fmt: skip
    own = Gaussian(0.5)
    assert likelihoods.get(own) is own
    assert dense_vae((2, 2, 1), (2,), likelihood=own).likelihood is own
    vae = dense_vae((2, 2, 1), (2,), likelihood="gaussian")
    assert isinstance(VAE(vae.encoder, vae.decoder, "gaussian").likelihood, Gaussian)


@pytest.mark.parametrize("method", ["log_prob", "mean", "sample"])
def test_the_base_class_names_the_method_that_is_missing(method):
    class Half(Likelihood):
        pass

    with pytest.raises(NotImplementedError, match=f"Half must define `{method}"):
        getattr(Half(), method)(*[np.zeros((1, 1))] * (2 if method == "log_prob" else 1))


def test_called_it_gives_the_mean(name):
    likelihood = ALL[name]()
    parameters = as_batch(EXPECTED[name][1])
    np.testing.assert_array_equal(numpy(likelihood(parameters)), numpy(likelihood.mean(parameters)))


def two_shapes(n=64):
    """Noisy images of two shapes, on 256 levels."""
    rng = np.random.default_rng(0)
    shapes = np.stack([np.eye(4), np.eye(4)[::-1]]) * 0.8 + 0.1
    x = shapes[rng.integers(0, 2, n)][..., None] + rng.normal(scale=0.05, size=(n, 4, 4, 1))
    return (np.clip(x, 0, 1) * 255).round().astype("float32") / 255


@pytest.mark.parametrize("name", [name for name in ALL if name != "gaussian"])  # the one with σ = 0.3 will do
def test_a_vae_with_each_learns_is_saved_and_loaded_in_safe_mode(name, tmp_path):
    keras.utils.set_random_seed(0)
    x = two_shapes()
    vae = dense_vae((4, 4, 1), (16,), likelihood=ALL[name]())
    vae.compile(keras.optimizers.Adam(0.03), run_eagerly=keras.backend.backend() != "jax")
    losses = vae.fit(x, batch_size=64, epochs=6, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.5
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras", safe_mode=True)
    assert type(loaded.likelihood) is type(vae.likelihood)
    assert loaded.likelihood.get_config() == vae.likelihood.get_config()
    assert loaded.evaluate(x, verbose=0) == vae.evaluate(x, verbose=0)
    np.testing.assert_array_equal(loaded.sample(3, seed=0), vae.sample(3, seed=0))
    if name == "gaussian, learned":
        assert any(weight is vae.likelihood.log_var for weight in vae.trainable_variables)
        assert float(loaded.likelihood.log_var) == float(vae.likelihood.log_var) != 0  # where it started


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_computes_in_32_bits_or_more_under_every_policy(name, policy):
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in 32 bits")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        vae = dense_vae((4, 4, 1), (8,), likelihood=ALL[name]())
        x = two_shapes(8)
        width = "float64" if policy == "float64" else "float32"
        assert vae.likelihood.compute_dtype == width
        assert vae(x)["parameters"].dtype != "float32"
        loss = vae.compute_loss(ops.convert_to_tensor(x), y_pred=vae(x))
        assert keras.backend.standardize_dtype(loss.dtype) == width and np.isfinite(float(loss))
        for images in (vae.sample(2), vae.sample(2, draw_pixels=True), vae.predict_on_batch(x)):
            assert images.dtype == width and np.isfinite(images).all()
    finally:
        keras.config.set_dtype_policy(before)


def test_drawn_pixels_follow_the_likelihood(name):
    """With a decoder that gives the same parameters for every z, all that varies is the pixels' own noise."""
    rows = np.array(SAMPLED.get(name, [[-1.0], [0.5], [2.0]])[:3], "float32")
    vae = dense_vae((2, 2, 3), (2,), likelihood=ALL[name]())
    kernel, bias = vae.decoder.layers[-2].weights
    kernel.assign(np.zeros(kernel.shape))
    bias.assign(np.tile(rows.T.ravel(), 4))
    drawn = vae.sample(2_000, seed=5, draw_pixels=True)
    for channel, row in enumerate(rows):
        assert p_value(name, drawn[..., channel].ravel(), row.astype("float64")) > 1e-4, row
    # 250 are decoded at a time: each time with noise of their own
    assert not np.array_equal(drawn[:250], drawn[250:500])
    np.testing.assert_array_equal(drawn, vae.sample(2_000, seed=5, draw_pixels=True))
    means = numpy(vae.likelihood.mean(as_batch([rows.T.ravel()])))
    np.testing.assert_allclose(vae.sample(2, seed=5), np.broadcast_to(means, (2, 2, 2, 3)), rtol=1e-6)

"""Bad calls: what is documented comes back, or a ValueError says what was wrong, before anything has changed."""

import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from vae_utils import plotting
from vae_utils.architectures import conv_vae, dense_vae
from vae_utils.datasets import binarize, load_mnist
from vae_utils.distributions import bernoulli_log_prob, gaussian_kl, gaussian_log_prob
from vae_utils.evaluation import elbo, grid_log_likelihood, log_likelihood, reconstruction_floor
from vae_utils.layers import Sampling, reparameterize
from vae_utils.models import VAE
from vae_utils.training import dataset_from_arrays

matplotlib.use("Agg")
pytestmark = pytest.mark.robustness

IMAGE = (4, 4, 1)
NUMBERS = ("f2", "f4", "f8", "i1", "u1", "i8", "b1")
NO_NUMBERS = ("c8", "U3", "S3", "O", "M8[s]", "V4")
VALUES = (0, 0.25, 1, 1, -0.001, 1.001, 255, -1, np.nan, np.inf, -np.inf, 1e30)
SHAPES = (
    (2, *IMAGE),
    (1, *IMAGE),
    (3, *IMAGE),
    (0, *IMAGE),
    IMAGE,
    (2, 4, 4),
    (2, 4, 4, 3),
    (2, 5, 4, 1),
    (2, 16),
    (2,),
)
LATENT = ((1, 2), (3, 2), (0, 2), (2, 1), (2, 3), (2,), (), (2, 2, 2), (1, 1, 2))
OBJECTS = (None, 3, 0.5, "text", b"bytes", [], [[1.0], [1.0, 2.0]], (), {}, {"x": np.zeros((2, *IMAGE))}, object(), {1})


def cases(n):
    return settings(max_examples=n, suppress_health_check=list(HealthCheck))


@st.composite
def arrays(draw, shapes, values=VALUES):
    """Arrays of all types and shapes, zero but for one to three of the values."""
    dtype = draw(st.sampled_from(NUMBERS * 3 + NO_NUMBERS))
    array = np.zeros(draw(st.sampled_from(shapes)), dtype)
    if dtype in NUMBERS and array.size:
        for _ in range(draw(st.integers(1, 3))):
            value = draw(st.sampled_from(values))
            if dtype[0] != "f":
                value = np.clip(np.nan_to_num(value), 0 if dtype[0] in "ub" else -1, 100)
            with np.errstate(over="ignore"):  # 1e30 is infinite in half precision
                array.flat[draw(st.integers(0, array.size - 1))] = value
    return array


def objects_or(strategy):
    return st.one_of(strategy, strategy, strategy, st.sampled_from(OBJECTS))


def is_real(x):
    return isinstance(x, np.ndarray) and x.dtype.kind in "biuf"


def are_images(x):
    return is_real(x) and x.shape[1:] == IMAGE and len(x) > 0 and bool(((x >= 0) & (x <= 1)).all())


def outcome(call, *names):
    """The result, or None where a ValueError names one of the names."""
    try:
        result = call()
    except ValueError as error:
        assert any(name in str(error) for name in names), error
        return None
    assert result is not None
    return result


@pytest.fixture(scope="module")
def vae():
    keras.utils.set_random_seed(0)
    vae = dense_vae(IMAGE, hidden=(4,))
    vae.compile("adam")
    return vae


def changed(vae, before):
    return not all(np.array_equal(a, b) for a, b in zip(before, vae.get_weights(), strict=True))


METHODS = {
    "fit": lambda vae, x: vae.fit(x, verbose=0).history["loss"][0],
    "evaluate": lambda vae, x: vae.evaluate(x, verbose=0)[0],
    "predict": lambda vae, x: vae.predict(x, verbose=0),
    "predict_on_batch": lambda vae, x: vae.predict_on_batch(x),
    "encode": lambda vae, x: vae.encode(x)[1],
    "elbo": lambda vae, x: elbo(vae, x),
    "log_likelihood": lambda vae, x: log_likelihood(vae, x, num_samples=3),
    "grid_log_likelihood": lambda vae, x: grid_log_likelihood(vae, x, points=5),
    "plot_reconstructions": lambda vae, x: plotting.plot_reconstructions(
        vae, x, ax=matplotlib.figure.Figure().subplots()
    ),
}


@pytest.mark.parametrize("method", METHODS)
@cases(60)
@given(x=objects_or(arrays(SHAPES)))
def test_images(vae, tried, method, x):
    before = vae.get_weights()
    result = outcome(lambda: METHODS[method](vae, x), "Pass one array", "Images must", "Pixels must", "`x` must")
    assert (result is not None) == are_images(x), x
    if result is None:
        assert not changed(vae, before)
    elif not method.startswith("plot"):
        assert np.isfinite(result).all()
    tried()


@cases(60)
@given(x=objects_or(arrays(SHAPES)), split=st.booleans())
def test_validation_images(vae, tried, x, split):
    assume(x is not None)
    before = vae.get_weights()
    data = (x, x) if split else x
    good = np.zeros((2, *IMAGE), "f")
    names = ("Pass one array", "Images must", "Pixels must", "`x` must", "validation_data", "Data is expected")
    result = outcome(lambda: vae.fit(good, validation_data=data, verbose=0), *names)
    assert (result is not None) == are_images(x)
    assert result is not None or not changed(vae, before)
    tried()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it makes a tf.data.Dataset")
@cases(80)
@given(data=objects_or(arrays((*SHAPES, ()))), other=st.none() | arrays([(2,), (2, 3), (3,)]))
def test_dataset_from_arrays(tried, data, other):
    assume(other is None or not (isinstance(data, dict) and data))  # a dictionary of arrays is as good as a tuple
    parts = [part for part in (data, other) if part is not None]
    result = outcome(lambda: dataset_from_arrays(data if other is None else (data, other), 2), "`data` must")
    rows = data is not None and all(is_real(part) and part.shape and len(part) for part in parts)
    assert (result is not None) == (rows and len({len(part) for part in parts}) == 1), data
    if result is not None:
        drawn = [len(batch if other is None else batch[0]) for batch in result]
        assert sum(drawn) == len(data) and max(drawn) <= 2
    tried()


@cases(80)
@given(
    weights=objects_or(arrays([(4,), (4, 1), (3,), (5,), (4, 2), (0,), ()])),
    method=st.sampled_from(["fit", "evaluate"]),
)
def test_sample_weights(vae, tried, weights, method):
    assume(weights is not None)
    before = vae.get_weights()
    x = np.full((4, *IMAGE), 0.5, "f")
    result = outcome(lambda: getattr(vae, method)(x, sample_weight=weights, verbose=0), "sample_weight")
    fits = is_real(weights) and weights.shape in ((4,), (4, 1)) and np.isfinite(weights).all() and (weights >= 0).all()
    assert (result is not None) == bool(fits), weights
    assert result is not None or not changed(vae, before)
    tried()


@cases(40)
@given(n=st.integers(0, 9), label=st.sampled_from([0, 1, 0.5]), method=st.sampled_from(["fit", "evaluate"]))
def test_targets(vae, tried, n, label, method):
    """The images are their own target: as many of them, and the same, or none."""
    x, before = np.zeros((4, *IMAGE), "f"), vae.get_weights()
    result = outcome(lambda: getattr(vae, method)(x, np.full((n, *IMAGE), label), verbose=0), "`y`")
    assert (result is not None) == (n == 4 and label == 0)
    assert outcome(lambda: getattr(vae, method)(x, np.full(n, label), verbose=0), "`y`") is None, "labels"
    assert result is not None or not changed(vae, before)
    tried()


SIZES = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, 2.0, "2", None, np.int64(2), np.nan, [2], (2, 2), 1j]))


def is_size(n):
    return isinstance(n, (int, np.integer)) and n >= 1


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("batch_size", lambda vae, x, n: vae.encode(x, batch_size=n)),
        ("batch_size", lambda vae, x, n: vae.decode(np.zeros((3, 2)), batch_size=n)),
        ("batch_size", lambda vae, x, n: vae.fit(x, batch_size=-1 if n is None else n, verbose=0)),
        ("batch_size", lambda vae, x, n: vae.evaluate(x, batch_size=-1 if n is None else n, verbose=0)),
        ("batch_size", lambda vae, x, n: vae.predict(x, batch_size=-1 if n is None else n, verbose=0)),
        ("epochs", lambda vae, x, n: vae.fit(x, epochs=n, verbose=0)),
        ("n", lambda vae, x, n: vae.sample(n)),
        ("num_samples", lambda vae, x, n: elbo(vae, x, num_samples=n)),
        ("num_samples", lambda vae, x, n: log_likelihood(vae, x, num_samples=n)),
        ("points", lambda vae, x, n: grid_log_likelihood(vae, x, points=n)),
        ("columns", lambda vae, x, n: plotting.plot_digits(x, columns=n, ax=matplotlib.figure.Figure().subplots())),
        ("n", lambda vae, x, n: plotting.plot_manifold(vae, n=n, ax=matplotlib.figure.Figure().subplots())),
        ("latent_dim", lambda vae, x, n: dense_vae(IMAGE, (4,), n)),
        ("latent_dim", lambda vae, x, n: conv_vae(IMAGE, (2,), 4, n)),
        ("hidden", lambda vae, x, n: dense_vae(IMAGE, (4, n))),
        ("hidden", lambda vae, x, n: conv_vae(IMAGE, (2,), n)),
        ("filters", lambda vae, x, n: conv_vae(IMAGE, (n,), 4)),
        ("image_shape", lambda vae, x, n: dense_vae((n, 4, 1), (4,))),
        ("image_shape", lambda vae, x, n: conv_vae((4, 4, n), (2,))),
    ],
)
@cases(25)
@given(n=SIZES)
def test_sizes(vae, tried, name, call, n):
    before = vae.get_weights()
    result = outcome(lambda: call(vae, np.full((2, *IMAGE), 0.5, "f"), n), f"`{name}`")
    assert (result is not None) == is_size(n)
    assert result is not None or not changed(vae, before)
    tried()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("image_shape", lambda value: dense_vae(value, (4,))),
        ("image_shape", lambda value: conv_vae(value, (2,))),
        ("hidden", lambda value: dense_vae(IMAGE, value)),
        ("filters", lambda value: conv_vae(IMAGE, value)),
    ],
)
@pytest.mark.parametrize("value", [None, 4, "44", {4: 4}, (4, -4, 1), (4, 4.0, 1), [None], (0,), np.ones(3)])
def test_lists_of_sizes(tried, name, call, value):
    assert outcome(lambda: call(value), f"`{name}`") is None
    tried()


@cases(60)
@given(z=objects_or(arrays(LATENT)))
def test_decode(vae, tried, z):
    result = outcome(lambda: vae.decode(z), "`z` must")
    with np.errstate(over="ignore"):
        fits = is_real(z) and z.ndim == 2 and z.shape[1] == 2 and len(z) > 0 and np.isfinite(z.astype("f")).all()
    assert (result is not None) == bool(fits)
    if fits and np.abs(z).max() < 1e6:
        assert ((result >= 0) & (result <= 1)).all()
    tried()


@pytest.mark.parametrize(
    "call", [lambda v, s: v.sample(1, seed=s), lambda v, s: elbo(v, np.zeros((1, *IMAGE)), seed=s)]
)
@cases(30)
@given(seed=st.one_of(st.integers(0, 2**31 - 1), st.sampled_from([0.5, "1", [1], (1, 2), 1j, object()])))
def test_seeds(vae, tried, call, seed):
    result = outcome(lambda: call(vae, seed), "`seed`")
    assert (result is not None) == isinstance(seed, int)
    tried()


@cases(60)
@given(beta=st.one_of(st.floats(), st.integers(-3, 3), st.sampled_from(["1", None, [1.0], 1j, np.float32(2), np.nan])))
def test_beta(vae, tried, beta):
    def assign():
        vae.beta = beta
        return True

    before = vae.beta
    real = isinstance(beta, (int, float, np.floating)) and 0 <= beta < 3e38
    result = outcome(assign, "`beta`")
    if not isinstance(beta, float) or not 3e38 <= beta < np.inf:  # there, single precision overflows
        assert (result is not None) == bool(real)
    assert vae.beta == (pytest.approx(beta, rel=1e-6, abs=1e-37) if result else before)
    vae.beta = 1.0
    tried()


@cases(100)
@given(
    x=objects_or(arrays([(2, 3), (3,), (), (0, 3), (1, 2, 2)])), seed=st.sampled_from([0, 1, -1, 0.5, "1", None, 2**70])
)
def test_binarize(tried, x, seed):
    result = outcome(lambda: binarize(x, seed), "`x`", "Pixels", "`seed`")
    seed_fits = isinstance(seed, int) and seed >= 0
    if is_real(x):
        fits = seed_fits and bool(((x >= 0) & (x <= 1)).all())
        assert (result is not None) == fits
    if result is not None:
        assert result.shape == np.shape(x) and np.isin(result, [0, 1]).all() and result.dtype == np.float32
    tried()


@cases(100)
@given(x=objects_or(arrays([*SHAPES, (3,), ()])))
def test_reconstruction_floor(tried, x):
    result = outcome(lambda: reconstruction_floor(x), "`x`", "Pixels", "at least one image")
    if is_real(x):
        assert (result is not None) == bool(x.size and x.ndim and ((x >= 0) & (x <= 1)).all())
    if result is not None:
        assert result.shape == (len(x),) and (result >= 0).all()
    tried()


DENSITIES = {
    "gaussian_log_prob": (gaussian_log_prob, ("z", "mean", "log_var")),
    "gaussian_kl": (gaussian_kl, ("z_mean", "z_log_var")),
    "bernoulli_log_prob": (bernoulli_log_prob, ("x", "logits")),
    "reparameterize": (reparameterize, ("z_mean", "z_log_var", "epsilon")),
}


@pytest.mark.parametrize("name", DENSITIES)
@cases(120)
@given(choose=st.data())
def test_densities(tried, name, choose):
    function, names = DENSITIES[name]
    values = (0, 0.25, 1, -1, 80, -80, np.nan)
    given = [
        choose.draw(objects_or(arrays(((3, 2), (1, 2), (2,), (3, 1), (3, 4), (0, 2), (), (5, 3, 2)), values)))
        for _ in names
    ]
    result = outcome(lambda: function(*given), *(f"`{part}`" for part in names), "Received")
    tried()
    if not all(map(is_real, given)):
        return
    shapes = [array.shape for array in given]
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        assert result is None
        return
    if name == "reparameterize":
        assert result.shape == shape
    elif name == "bernoulli_log_prob":
        fits = len(shapes[0]) >= 2 and shapes[0][1:] == shapes[1][1:]
        assert (result is not None) == fits and (not fits or tuple(result.shape) == shape[:1])
    else:
        fits = all(shapes) and len({s[-1] for s in shapes}) == 1
        assert (result is not None) == fits and (not fits or tuple(result.shape) == shape[:-1])
    if name == "gaussian_kl" and result is not None and all(np.isfinite(array).all() for array in given):
        assert (np.array(result) >= -1e-6).all()


@cases(80)
@given(inputs=st.lists(arrays(((3, 2), (1, 2), (2,), (3, 4), (0, 2)), (0, 1, -1, 80, -80)), min_size=0, max_size=3))
def test_sampling(tried, inputs):
    result = outcome(lambda: Sampling(seed=1)(inputs), "z_mean", "`Sampling`", "dtype", "to a Tensor")
    if len(inputs) == 2 and all(array.dtype.kind == "f" for array in inputs):
        assert (result is not None) == (inputs[0].shape == inputs[1].shape)
    if result is not None:
        assert result.shape == inputs[0].shape and np.isfinite(np.array(result, "f8")).all()
    tried()


@pytest.mark.parametrize("fallback", ["yes", 1, True, b"optical-digits", ["optical-digits"]])
def test_fallback(tried, fallback):
    with pytest.raises(ValueError, match="`fallback` must be"):
        load_mnist(fallback=fallback)
    tried()


def test_parts_that_are_no_models(vae, tried):
    for encoder, decoder in ((None, None), (vae.encoder, None), ("a", vae.decoder), (vae.encoder, keras.Model())):
        assert outcome(lambda e=encoder, d=decoder: VAE(e, d), "encoder and the decoder") is None
        tried()


@cases(80)
@given(images=objects_or(arrays([*SHAPES, (0, 4, 4)])))
def test_plot_digits(tried, images):
    ax = matplotlib.figure.Figure().subplots()
    result = outcome(lambda: plotting.plot_digits(images, ax=ax), "Images must", "`images` must")
    if is_real(images):
        shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
        assert (result is ax) == bool(shaped and images.size and not np.isnan(images).any())
    else:
        assert result is None
    tried()


@cases(80)
@given(
    z=objects_or(arrays(LATENT)),
    labels=objects_or(arrays([(3,), (1,), (2,), (0,), (3, 1)], (0, 1, 9, 10, -1, 0.5, np.nan))),
)
def test_plot_latent_space(tried, z, labels):
    ax = matplotlib.figure.Figure().subplots()
    result = outcome(lambda: plotting.plot_latent_space(z, labels, ax=ax), "`z`", "`labels`")
    if result is not None:
        assert np.isfinite(z).all() and len(z) == len(labels) > 0
        assert not is_real(labels) or not np.isnan(labels).any()
    tried()


@pytest.mark.parametrize("limit", [0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize(
    "call",
    [
        lambda vae, limit: plotting.plot_manifold(vae, 2, limit),
        lambda vae, limit: grid_log_likelihood(vae, np.zeros((1, *IMAGE)), 2, limit),
    ],
)
def test_limits(vae, tried, call, limit):
    assert outcome(lambda: call(vae, limit), "`limit`") is None
    tried()


@pytest.mark.parametrize("history", [None, [], 3, "loss", {}, {"los": [1]}])
def test_plot_history(tried, history):
    assert outcome(lambda: plotting.plot_history(history), "`history`", "`metric`") is None
    assert outcome(lambda: plotting.plot_history({"loss": [1]}, metric=["loss"]), "`metric`") is None
    tried()


@pytest.mark.parametrize("split", [-0.1, 1, 2.0, np.nan])
def test_validation_split(vae, tried, split):
    assert outcome(lambda: vae.fit(np.zeros((4, *IMAGE)), validation_split=split), "`validation_split`") is None
    tried()


BAD_BATCHES = {
    "shape": (np.zeros((3, 5, 4, 1), "f"), "encode fit evaluate predict", "shape"),
    "rank": (np.zeros((3, 16), "f"), "encode fit evaluate predict", "shape"),
    "bytes": (np.full((3, *IMAGE), 255, "f"), "encode fit", r"\[0, 1\]"),
    "two": (np.full((3, *IMAGE), 2, "f"), "encode fit", r"negative|\[0, 1\]"),
    "NaN": (np.full((3, *IMAGE), np.nan, "f"), "encode fit", "NaN"),
}


@pytest.mark.parametrize("fault", BAD_BATCHES)
def test_data_sets(tried, fault):
    batch, methods, message = BAD_BATCHES[fault]
    for method in methods.split():
        vae = dense_vae(IMAGE, hidden=(4,))
        vae.compile(keras.optimizers.Adam(0.05))
        with pytest.raises((ValueError, FloatingPointError), match=message):
            getattr(vae, method)(tf.data.Dataset.from_tensors(batch).repeat(100))
        tried()
    with pytest.raises(ValueError, match="no batch"):
        vae.encode(tf.data.Dataset.from_tensors(batch).take(0))


# Extreme, but valid.


def gradient_is_finite(f, *values):
    variables = [tf.Variable(value, dtype="float32") for value in values]
    with tf.GradientTape() as tape:
        result = f(*variables)
    for tensor in [result, *tape.gradient(result, variables)]:
        assert np.isfinite(np.array(tensor)).all()
    return np.array(result, "f8")


@cases(60)
@given(log_var=st.floats(-80, 80, width=32), mean=st.floats(-30, 30, width=32), z=st.floats(-30, 30, width=32))
def test_log_variances_to_80(tried, log_var, mean, z):
    kl = gradient_is_finite(gaussian_kl, [mean], [log_var])
    expected = 0.5 * (np.float64(mean) ** 2 + np.expm1(np.float64(log_var)) - log_var)
    np.testing.assert_allclose(kl, expected, rtol=1e-4, atol=1e-6)
    log_prob = gradient_is_finite(gaussian_log_prob, [z], [mean], [log_var])
    np.testing.assert_allclose(log_prob, stats.norm.logpdf(z, mean, np.exp(log_var / 2)), rtol=1e-4, atol=1e-4)
    gradient_is_finite(reparameterize, [mean], [log_var], [z])
    tried()


@cases(60)
@given(logit=st.floats(-1e4, 1e4, width=32), pixel=st.floats(0, 1, width=32))
def test_logits_to_ten_thousand(tried, logit, pixel):
    log_prob = gradient_is_finite(bernoulli_log_prob, [[pixel]], [[logit]])
    exact = pixel * np.float64(logit) - np.logaddexp(0, np.float64(logit))
    np.testing.assert_allclose(log_prob, exact, rtol=1e-5, atol=1e-2)
    tried()


@pytest.mark.parametrize("log_var", [-80.0, 80.0])
@pytest.mark.parametrize("bias", [-1e4, 0.0, 1e4])
def test_a_model_at_the_extremes(tried, log_var, bias):
    vae = dense_vae(IMAGE, hidden=(4,))
    vae.encoder.get_layer("z_log_var").bias.assign([log_var] * 2)
    vae.decoder.layers[-2].bias.assign([bias] * 16)
    x = np.random.default_rng(0).random((5, *IMAGE)).astype("f")
    with tf.GradientTape() as tape:
        loss = vae.compute_loss(x, y_pred=vae(x))
    gradients = tape.gradient(loss, vae.trainable_variables)
    assert all(np.isfinite(np.array(tensor)).all() for tensor in [loss, *gradients])
    tried()


@pytest.mark.parametrize(("n", "batch_size"), [(1, 32), (3, 1), (33, 32)])
@pytest.mark.parametrize(
    ("build", "options"),
    [
        (lambda: dense_vae(IMAGE, (4,)), {"jit_compile": False}),
        (lambda: dense_vae(IMAGE, (4,)), {"jit_compile": True}),
        (lambda: conv_vae(IMAGE, (2,), 4), {"jit_compile": False, "steps_per_execution": 2}),
    ],
)
def test_one_image_batches_of_one_and_a_last_batch_of_one(tried, n, batch_size, build, options):
    vae = build()
    vae.compile("adam", **options)
    x = np.random.default_rng(0).random((n, *IMAGE)).astype("f")
    losses = vae.fit(x, batch_size=batch_size, epochs=2, validation_data=x[:1], verbose=0).history
    assert np.isfinite([*losses.values()]).all()
    assert all(np.isfinite(weight).all() for weight in vae.get_weights())
    assert vae.predict(x, batch_size=batch_size, verbose=0).shape == x.shape
    assert vae.encode(x, batch_size=batch_size)[0].shape == (n, 2)
    tried()


@pytest.mark.parametrize("build", [lambda: dense_vae(IMAGE, (4,), 1_000), lambda: conv_vae(IMAGE, (2,), 4, 1_000)])
def test_a_thousand_latent_dimensions(tried, build):
    vae = build()
    vae.compile("adam")
    x = np.random.default_rng(0).random((8, *IMAGE)).astype("f")
    losses = vae.fit(x, epochs=2, verbose=0).history
    assert np.isfinite([*losses.values()]).all() and np.isfinite(elbo(vae, x)).all()
    assert np.isfinite(log_likelihood(vae, x, num_samples=10)).all() and vae.sample(3).shape == (3, *IMAGE)
    tried()

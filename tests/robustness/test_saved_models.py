"""Saved models: what a model keeps, the last release's file, files that make no VAE, safe mode that stays on."""

import ast
import io
import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from tools.chapters import ROOT
from vae_utils.architectures import dense_vae
from vae_utils.likelihoods import ContinuousBernoulli, DiscretizedLogistic, Gaussian
from vae_utils.models import VAE

pytestmark = pytest.mark.robustness

LAST_RELEASE = Path(__file__).parent / "vae-0.1.0.keras"


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def test_the_last_releases_file_loads(tried):
    """What it decodes is computed anew, with NumPy, from the numbers in the file."""
    vae = keras.saving.load_model(LAST_RELEASE)
    assert isinstance(vae, VAE) and vae.beta == 0.5 and vae.image_shape == (4, 4, 1)
    with h5py.File(io.BytesIO(members(LAST_RELEASE)["model.weights.h5"])) as file:
        kernels = {}
        file.visititems(lambda name, item: kernels.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    kernels = {name: value.astype("f8") for name, value in kernels.items() if name.startswith("decoder")}
    hidden, out = ([kernels[f"decoder/layers/{layer}/vars/{k}"] for k in (0, 1)] for layer in ("dense", "dense_1"))
    z = np.array([[0.5, -1.0], [2.0, 0.0]])
    logits = np.maximum(z @ hidden[0] + hidden[1], 0) @ out[0] + out[1]
    np.testing.assert_allclose(vae.decode(z).reshape(2, 16), 1 / (1 + np.exp(-logits)), rtol=1e-5)
    vae.fit(np.zeros((4, 4, 4, 1)), verbose=0)
    tried()


LIKELIHOODS = {
    "bernoulli": lambda: "bernoulli",
    "continuous Bernoulli": ContinuousBernoulli,
    "gaussian, fixed": lambda: Gaussian(0.3),
    "gaussian, learned": lambda: Gaussian("learned", min_scale=0.05),
    "gaussian, per pixel": lambda: Gaussian("per_pixel"),
    "logistic, 16 levels": lambda: DiscretizedLogistic(16),
}


def data(condition):
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 16, (32, 4, 4, 1)) / 15).astype("float32")
    return [x, rng.integers(0, 3, 32)] if condition else x


@pytest.mark.parametrize("condition", [None, 3])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_what_a_model_has_learned_and_where_it_stands_is_kept(tmp_path, tried, likelihood, condition):
    """β, the likelihood with its settings and its weights, the optimizer, and the noise that comes next."""
    keras.utils.set_random_seed(0)
    vae = dense_vae((4, 4, 1), (8,), likelihood=LIKELIHOODS[likelihood](), num_classes=condition)
    vae.beta = 0.25
    vae.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    vae.fit(data(condition), epochs=2, shuffle=False, verbose=0)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert loaded.beta == 0.25 and loaded.condition_shapes == vae.condition_shapes
    assert type(loaded.likelihood) is type(vae.likelihood)
    assert loaded.likelihood.get_config() == vae.likelihood.get_config()
    np.testing.assert_array_equal(loaded.predict(data(condition), verbose=0), vae.predict(data(condition), verbose=0))
    for model in (vae, loaded):
        model.fit(data(condition), epochs=2, shuffle=False, verbose=0)
    assert len(vae.get_weights()) == len(loaded.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(vae.get_weights(), loaded.get_weights(), strict=True))
    tried()


def with_config(path, part, value):
    """Write a copy of the last release's file whose configuration has another `part`."""
    contents = members(LAST_RELEASE)
    config = json.loads(contents["config.json"])
    config["config"][part] = value
    contents["config.json"] = json.dumps(config)
    return write(path, contents)


DAMAGED = {
    "a negative β": ("beta", -1.0, "`beta` must be"),
    "β that is no number": ("beta", "0.5", "`beta` must be"),
    "an unknown likelihood": ("likelihood", "poisson", "`likelihood` must be"),
    "a likelihood that takes two numbers for a pixel": ("likelihood", "discretized_logistic", "2 per pixel"),
    "no encoder": ("encoder", None, "must be built Keras models"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_configuration_that_makes_no_vae_is_refused(tmp_path, tried, damage):
    part, value, message = DAMAGED[damage]
    with pytest.raises((ValueError, TypeError), match=message):
        keras.saving.load_model(with_config(tmp_path / "damaged.keras", part, value))
    tried()


def test_the_decoder_in_the_encoders_place_is_refused(tmp_path, tried):
    decoder = json.loads(members(LAST_RELEASE)["config.json"])["config"]["decoder"]
    with pytest.raises((ValueError, TypeError), match="encoder must give"):
        keras.saving.load_model(with_config(tmp_path / "damaged.keras", "encoder", decoder))
    tried()


FOREIGN = {
    "a lambda": {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": keras.layers.Lambda(lambda x: x).get_config(),
        "registered_name": None,
    },
    "a function of the system": {"module": "os", "class_name": "mkdir", "config": {"path": "mark"}},
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("part", ["encoder", "decoder", "likelihood"])
def test_foreign_code_in_a_part_of_ours_is_refused(tmp_path, monkeypatch, tried, kind, part):
    """`VAE.from_config` makes its parts anew, and must not make anything else."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError), match=r"Lambda|deserializ|could not|locate"):
        keras.saving.load_model(with_config(tmp_path / "hostile.keras", part, FOREIGN[kind]))
    assert not (tmp_path / "mark").exists()
    tried()


def unsafe(source):
    """The lines in which a source turns safe mode off, or loads what can run code."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (
            arguments.get("safe_mode", "True") != "True"
            or name.endswith("enable_unsafe_deserialization")
            or arguments.get("allow_pickle", "False") != "False"
            or name in ("pickle.load", "pickle.loads", "joblib.load", "torch.load")
        ):
            lines.append(node.lineno)
    return lines


def test_no_source_turns_safe_mode_off(tried):
    assert unsafe("f(safe_mode=False)") and unsafe("keras.config.enable_unsafe_deserialization()")
    assert unsafe("np.load(p, allow_pickle=True)") and not unsafe("keras.saving.load_model(p, safe_mode=True)")
    sources = [
        path for folder in ("vae_utils", "notebooks", "tools", "benchmarks") for path in (ROOT / folder).glob("*.py")
    ]
    assert len(sources) > 10
    for path in sources:
        assert unsafe(path.read_text("utf-8")) == [], path.name
        tried()

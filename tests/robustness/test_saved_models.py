"""Saved models: the last release's file loads, a damaged or a hostile one is refused, safe mode stays on."""

import ast
import io
import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools.chapters import ROOT
from vae_utils.architectures import dense_vae
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


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.floats(0, 0.99), st.floats(0, 0.99), st.sampled_from(["cut", "drop", "zero", "flip"]))
def test_a_damaged_file_is_refused(tmp_path_factory, tried, start, stop, kind):
    """Refused with an error, or its bytes did not matter and the weights are the file's own."""
    content = LAST_RELEASE.read_bytes()
    i, j = sorted((int(start * len(content)), int(stop * len(content))))
    damaged = {
        "cut": content[:i],
        "drop": content[:i] + content[j + 1 :],
        "zero": content[:i] + bytes(j - i) + content[j:],
        "flip": content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :],
    }[kind]
    path = tmp_path_factory.getbasetemp() / "damaged.keras"
    path.write_bytes(damaged)
    try:
        vae = keras.saving.load_model(path)
    except Exception as error:  # Keras, h5py and zipfile each have their own
        assert str(error)
    else:
        whole = keras.saving.load_model(LAST_RELEASE)
        assert all(np.array_equal(a, b) for a, b in zip(vae.get_weights(), whole.get_weights(), strict=True))
    tried()


def hostile_layer(kind, mark):
    """The configuration of a layer that would leave a mark, were it let."""
    if kind == "lambda":
        config = keras.layers.Lambda(lambda x: x).get_config()
        return {"module": "keras.layers", "class_name": "Lambda", "config": config, "registered_name": None}
    module, name = {"os": ("os", "mkdir"), "builtins": ("builtins", "exec"), "subprocess": ("subprocess", "Popen")}[
        kind
    ]
    return {"module": module, "class_name": name, "config": {"args": str(mark)}, "registered_name": name}


@pytest.mark.parametrize("kind", ["lambda", "os", "builtins", "subprocess"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_foreign_code_is_refused(tmp_path, monkeypatch, tried, kind, part):
    monkeypatch.chdir(tmp_path)
    contents = members(LAST_RELEASE)
    config = json.loads(contents["config.json"])
    layers = config["config"][part]["config"]["layers"]
    foreign = hostile_layer(kind, tmp_path / "mark")
    layers[1] = {**layers[1], **foreign, "name": layers[1]["name"]}
    contents["config.json"] = json.dumps(config)
    path = write(tmp_path / "hostile.keras", contents)
    with pytest.raises((ValueError, TypeError), match=r"Lambda|deserializ|could not|locate"):
        keras.saving.load_model(path)
    assert not (tmp_path / "mark").exists()
    tried()


def test_a_lambda_that_was_saved_is_refused(tmp_path, tried):
    vae = dense_vae((4, 4, 1), hidden=(4,))
    z = keras.Input((2,))
    logits = vae.decoder(z)
    decoder = keras.Model(z, keras.layers.Lambda(lambda x: x * 2, output_shape=(4, 4, 1))(logits))
    VAE(vae.encoder, decoder).save(tmp_path / "lambda.keras")
    with pytest.raises(ValueError, match="safe_mode=False"):
        keras.saving.load_model(tmp_path / "lambda.keras")
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

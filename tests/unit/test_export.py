"""A model handed on: what TensorFlow loads, in a process that knows nothing of `vae_utils`, gives the same numbers."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from vae_utils import conv_vae, dense_vae, load_pretrained

BACKEND = keras.backend.backend()
rng = np.random.default_rng(0)

#: Loads each SavedModel of a folder, calls the functions for which there are inputs, and saves what they give.
SERVE = """
import sys
from pathlib import Path
sys.modules["vae_utils"] = sys.modules["keras"] = None  # whoever imports them fails
import numpy as np
import tensorflow as tf
for path in sorted(Path(sys.argv[1]).glob("*.npz")):
    loaded, given, found = tf.saved_model.load(str(path.with_suffix(""))), np.load(path), {}
    for function in sorted({name.split()[0] for name in given}):
        inputs = [given[name] for name in sorted(given) if name.split()[0] == function]
        for k, output in enumerate(tf.nest.flatten(getattr(loaded, function)(*inputs))):
            found[f"{function} {k}"] = output.numpy()
    np.savez(path.with_suffix(".found"), **found)
"""


def served(folder, **inputs):
    """What the functions of the models in this folder give: model → function → list of outputs."""
    for model, functions in inputs.items():
        given = {f"{name} {k}": x for name, arrays in functions.items() for k, x in enumerate(arrays)}
        np.savez(folder / f"{model}.npz", **given)
    done = subprocess.run([sys.executable, "-c", SERVE, folder], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for model, functions in inputs.items():
        outputs = dict(np.load(folder / f"{model}.found.npz"))
        found[model] = {name: [outputs[key] for key in sorted(outputs) if key.split()[0] == name] for name in functions}
    return found


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    vae = dense_vae((6, 7, 3), hidden=(8,), latent_dim=3, likelihood="gaussian", num_classes=4)
    vae.compile("adam")
    vae.fit([rng.random((20, 6, 7, 3)).astype("float32"), np.arange(20) % 4], verbose=0)
    return vae


def assert_all_close(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, keras.ops.convert_to_numpy(b), rtol=0, atol=1e-6)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras exports SavedModels from TensorFlow and JAX")
def test_saved_models_serve_what_the_vae_gives(trained, tmp_path):
    pretrained = load_pretrained("conv-2d")
    pretrained.export(tmp_path / "pretrained", verbose=False)  # before anything has called it
    trained.export(tmp_path / "conditional", verbose=False)
    pretrained.encoder.export(tmp_path / "encoder", verbose=False)
    pretrained.decoder.export(tmp_path / "decoder", verbose=False)

    images, colour = (rng.random(shape).astype("float32") for shape in ((5, 28, 28, 1), (7, 6, 7, 3)))
    z, z_3, labels = (
        rng.normal(size=(5, 2)).astype("float32"),
        np.ones((7, 3), "float32"),
        np.arange(7, dtype="int32") % 4,
    )
    found = served(
        tmp_path,
        pretrained={"serve": [images], "encode": [images], "decode": [z]},
        conditional={"serve": [colour, labels], "encode": [colour, labels], "decode": [z_3, labels]},
        encoder={"serve": [images]},
        decoder={"serve": [z]},
    )

    assert_all_close(found["pretrained"]["serve"], [pretrained.predict(images, verbose=0)])
    assert_all_close(found["pretrained"]["encode"], pretrained.encode(images))
    assert_all_close(found["pretrained"]["decode"], [pretrained.decode(z)])
    assert_all_close(found["conditional"]["serve"], [trained.predict([colour, labels], verbose=0)])
    assert_all_close(found["conditional"]["encode"], trained.encode([colour, labels]))
    assert_all_close(found["conditional"]["decode"], [trained.decode(z_3, labels)])
    assert_all_close(found["encoder"]["serve"][:2], pretrained.encode(images))
    assert_all_close(found["decoder"]["serve"], [pretrained.decoder(z)])
    assert len(found["encoder"]["serve"]) == 3  # the third is z, with noise
    trained.fit([colour, labels], verbose=0)  # it can still learn

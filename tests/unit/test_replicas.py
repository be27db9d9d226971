"""Several devices: they learn, score and draw what one device does with the same batches, to rounding."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="Keras has no way to share a batch out on PyTorch")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "found"
    command = [sys.executable, Path(__file__).with_name("two_devices.py"), path]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": BACKEND}, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads(path.read_bytes())


@pytest.mark.parametrize("case", ["Case", "Penalties", "DataSets"])
def test_two_devices_give_what_one_gives(found, case):
    one, two = found[case]
    assert one.keys() == two.keys()
    for name in one:
        atol = 1e-6 if name in ("weights", "predict", "encode", "sample") else 0
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=atol, err_msg=name)
    assert len(one["loss"]) == 2 and one["loss"][1] < one["loss"][0]


@pytest.mark.parametrize("case", ["Case", "Penalties", "DataSets"])
def test_evaluate_repeats_on_two_devices(found, case):
    for outcome in found[case]:
        assert outcome["evaluate"] == outcome["evaluate again"]


def test_the_cases_are_what_they_are_named_for(found):
    for outcome in found["Penalties"]:
        loss, reconstruction, kl = outcome["evaluate"]
        penalty = loss - reconstruction - outcome["beta"] * kl
        assert penalty > 0.1
    assert {"val_loss", "val_kl_loss"} <= found["Penalties"][1].keys() & found["DataSets"][1].keys()


def test_a_model_saved_in_the_scope_is_the_same_outside(found):
    saved, loaded = found["saved"]
    assert saved["beta"] == loaded["beta"] == 0.5
    np.testing.assert_allclose(loaded["evaluate"], saved["evaluate"], rtol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX draws for the whole batch")
def test_each_replica_draws_noise_of_its_own(found):
    one, two = (outcome["z"] for outcome in found["noise"])
    assert len(np.unique(two.round(5), axis=0)) == len(two) == 5
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a fault of Keras on TensorFlow")
def test_keras_still_takes_the_mean_of_parts_of_different_size(found):
    assert found["Keras on an odd batch"] is not None, (
        "Keras takes odd batches: `_build_from_first_replica` may go from `training.workarounds`"
    )


def test_nothing_is_left_in_the_model_and_its_optimizer(found):
    assert found["left behind"] == []


@pytest.mark.skipif(BACKEND != "jax", reason="TensorFlow deals out any batch")
def test_on_jax_a_batch_that_does_not_divide_is_named(found):
    sizes = (1, 31, 33, 1)
    assert len(found["odd batch"]) == len(sizes)
    for told, size in zip(found["odd batch"], sizes, strict=True):
        assert f"must divide by 2, the number of devices. Received: {size}" in told

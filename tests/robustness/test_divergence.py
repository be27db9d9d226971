"""Divergence: a training that has lost its numbers stops with a message, not after thirty epochs of `nan`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from vae_utils.architectures import conv_vae, dense_vae

pytestmark = pytest.mark.robustness

COMPILED = [{"jit_compile": False}, {"jit_compile": True}, {"jit_compile": False, "steps_per_execution": 4}]


class Count(keras.callbacks.Callback):
    epochs = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs += 1


def diverge(vae, data, **options):
    count = Count()
    with pytest.raises(
        FloatingPointError, match=r"diverged: the loss of epoch \d+ is (nan|-?inf|-?[\d.e+]+)\. Lower the learning"
    ):
        vae.fit(data, epochs=30, callbacks=count, verbose=0, **options)
    return count.epochs


@pytest.mark.parametrize("options", COMPILED)
def test_a_learning_rate_of_ten(digits, tried, options):
    keras.utils.set_random_seed(0)
    vae = dense_vae(hidden=(16,))
    vae.compile(keras.optimizers.Adam(10.0), **options)
    assert diverge(vae, digits.x_train[:256]) <= 2
    tried()


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("build", [dense_vae, conv_vae])
def test_a_learning_rate_of_ten_at_full_size(digits, tried, optimizer, build):
    keras.utils.set_random_seed(0)
    vae = build()
    vae.compile(getattr(keras.optimizers, optimizer)(10.0), jit_compile=False)
    assert diverge(vae, digits.x_train[:128], validation_data=digits.x_test[:32]) <= 2
    tried()


@pytest.mark.parametrize("options", COMPILED)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_that_a_data_set_hides(digits, tried, options, value):
    x = digits.x_train[:256].copy()
    x[100, 3, 4] = value
    vae = dense_vae(hidden=(16,))
    vae.compile("adam", **options)
    with pytest.raises(ValueError, match=r"1 values that are NaN|values from 0 to inf"):
        vae.fit(tf.data.Dataset.from_tensor_slices(x).batch(32), epochs=30, verbose=0)
    assert vae.optimizer.iterations <= 4, "the fourth batch holds it, and its step may be counted before it fails"
    tried()


def test_nan_in_an_array_stops_before_the_first_step(digits, tried):
    x = digits.x_train[:256].copy()
    x[100, 3, 4] = np.nan
    vae = dense_vae(hidden=(16,))
    vae.compile("adam")
    with pytest.raises(ValueError, match="1 values that are NaN"):
        vae.fit(x, epochs=30, verbose=0)
    assert vae.optimizer.iterations == 0
    tried()


def test_a_backup_does_not_keep_what_diverged(digits, tmp_path, tried):
    vae = dense_vae(hidden=(16,))
    vae.compile(keras.optimizers.SGD(10.0), jit_compile=False)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(FloatingPointError):
        vae.fit(digits.x_train[:256], epochs=30, callbacks=[backup], verbose=0)
    assert not (tmp_path / "backup" / "latest.weights.h5").exists()
    tried()


@pytest.mark.parametrize("options", COMPILED)
def test_what_trains_well_is_left_alone(digits, tried, options):
    vae = dense_vae(hidden=(16,))
    vae.compile("adam", **options)
    history = vae.fit(digits.x_train[:256], epochs=3, callbacks=[], verbose=0)
    assert len(history.history["loss"]) == 3 and isinstance(history, keras.callbacks.History)
    tried()

"""The ways round faults of Keras and TensorFlow: each fault is still there, and no way leaves a trace."""

import contextlib
import gc

import keras
import numpy as np
import pytest

from vae_utils import dense_vae
from vae_utils.training import workarounds

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a fault of TensorFlow")
SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).random((20, *SHAPE)).astype("float32")


def plain_model():
    """A model of Keras that knows nothing of `vae_utils`."""
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def new_vae():
    vae = dense_vae(SHAPE, hidden=(4,))
    vae.compile("sgd", run_eagerly=True)
    return vae


def compiled_steps():
    gc.collect()
    return sum(type(thing).__name__ == "FuncGraph" for thing in gc.get_objects())


@on_tensorflow
def test_tensorflow_still_keeps_compiled_steps():
    before = compiled_steps()
    model = plain_model()
    model.fit(IMAGES, IMAGES, verbose=0)
    del model
    assert compiled_steps() > before, (
        "TensorFlow forgets compiled steps: `_all_reduce_sum_gradients` may go from `training.workarounds`"
    )


class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def epochs_after_a_restored_training(model, folder, *data):
    backup = keras.callbacks.BackupAndRestore(folder)
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data, epochs=2, callbacks=[backup, Kill()], verbose=0)
    assert model.fit(*data, epochs=2, callbacks=[backup], verbose=0).epoch == [1]  # it was restored
    return model.fit(*data, epochs=2, verbose=0).epoch


def test_keras_still_keeps_the_epoch_that_it_restored(tmp_path):
    assert epochs_after_a_restored_training(plain_model(), tmp_path, IMAGES, IMAGES) == [1], (
        "Keras forgets the restored epoch: `_initial_epoch` may go from `training.workarounds`"
    )


def test_a_vae_forgets_the_epoch_that_it_restored(tmp_path):
    assert epochs_after_a_restored_training(new_vae(), tmp_path, IMAGES) == [0, 1]


@pytest.mark.parametrize("callbacks", [[], [Kill()]], ids=["done", "killed"])
def test_nothing_is_left_in_the_model_and_its_optimizer(callbacks):
    usual, vae = new_vae(), new_vae()
    with pytest.raises(KeyboardInterrupt) if callbacks else contextlib.nullcontext():
        keras.Model.fit(usual, IMAGES, epochs=2, validation_data=(IMAGES,), callbacks=callbacks, verbose=0)
    with pytest.raises(KeyboardInterrupt) if callbacks else contextlib.nullcontext():
        vae.fit(IMAGES, epochs=2, validation_data=IMAGES, callbacks=callbacks, verbose=0)
    assert vars(vae).keys() == vars(usual).keys()
    assert vars(vae.optimizer).keys() == vars(usual.optimizer).keys()


@on_tensorflow
def test_what_the_user_had_put_in_their_place_comes_back():
    vae, own = new_vae(), object()
    vae.optimizer._all_reduce_sum_gradients = own
    with workarounds(vae):
        assert vae.optimizer._all_reduce_sum_gradients is not own
    assert vae.optimizer._all_reduce_sum_gradients is own

"""What surrounds a training: the data set made of arrays, callbacks, the ways round faults of Keras and TensorFlow."""

import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest

from vae_utils.architectures import dense_vae
from vae_utils.training import KLWarmUp, dataset_from_arrays

not_on_other_backends = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it makes a tf.data.Dataset")


@not_on_other_backends
def test_batches_hold_every_row_once_in_another_order():
    rows, labels = np.arange(23.0), np.arange(23)
    data = dataset_from_arrays((rows, labels), 5)
    assert len(data) == 5
    for _ in range(2):
        pairs = [(np.array(row), np.array(label)) for row, label in data]
        assert [len(row) for row, _ in pairs] == [5, 5, 5, 5, 3]
        assert (pairs[0][0].dtype, pairs[0][1].dtype) == (np.float32, np.int64)
        for row, label in pairs:
            np.testing.assert_array_equal(row, label)
        order = np.concatenate([label for _, label in pairs])
        np.testing.assert_array_equal(np.sort(order), labels)
        assert not np.array_equal(order, labels)  # the same by chance once in 23! ≈ 10²² times
    np.testing.assert_array_equal(np.concatenate([*dataset_from_arrays(labels, 4, shuffle=False)]), labels)


#: Prints by how much the peak of a fresh process grows, in bytes, while two data sets of 200 MB are begun.
GROWTH = """
import numpy as np
from vae_utils.architectures import dense_vae
from vae_utils.training import KLWarmUp, dataset_from_arrays
def peak():
    return next(int(row.split()[1]) * 1024 for row in open("/proc/self/status") if row.startswith("VmHWM"))
rows = np.ones((50_000, 1_000), "float32")
next(iter(dataset_from_arrays(rows[:1_000], 100)))
start = peak()
for _ in range(2):
    next(iter(dataset_from_arrays(rows, 100)))
print(peak() - start)
"""


@not_on_other_backends
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_batches_copy_no_array():
    done = subprocess.run([sys.executable, "-c", GROWTH], check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout.split()[-1]) < 100e6  # half an array


@not_on_other_backends
def test_batches_hold_an_array_as_long_as_they_live_and_no_longer():
    rows = np.arange(10.0, dtype="float32")
    alive, data = weakref.ref(rows), dataset_from_arrays(rows, 5, shuffle=False)
    del rows
    np.testing.assert_array_equal(np.concatenate([*data]), np.arange(10))
    assert alive() is not None
    iterator = iter(data)
    del data
    next(iterator)
    del iterator
    assert alive() is None


@not_on_other_backends
@pytest.mark.parametrize("data", [np.zeros((0, 3)), (np.zeros(3), np.zeros(4)), np.float32(1), "digits", ()])
def test_batches_refuse_what_is_no_set_of_rows(data):
    with pytest.raises(ValueError, match="`data` must hold"):
        dataset_from_arrays(data)
    with pytest.raises(ValueError, match="`batch_size` takes positive integers"):
        dataset_from_arrays(np.zeros(3), 0)


def small_vae(**options):
    keras.utils.set_random_seed(1)
    vae = dense_vae(hidden=(8,))
    vae.compile(keras.optimizers.Adam(1e-3), **options)
    return vae


class Record(keras.callbacks.Callback):
    """β as each batch met it."""

    def on_train_begin(self, logs=None):
        self.betas = []

    def on_train_batch_end(self, batch, logs=None):
        self.betas.append(self.model.beta)


def test_warm_up_raises_beta_evenly_and_then_leaves_it(digits):
    vae, record = small_vae(), Record()
    vae.fit(digits.x_train[:40], batch_size=10, epochs=3, callbacks=[KLWarmUp(2, beta=4.0), record], verbose=0)
    np.testing.assert_allclose(record.betas, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4, 4, 4])
    assert vae.beta == 4.0


def test_warm_up_goes_on_where_a_training_is_taken_up_again(digits):
    vae, record = small_vae(), Record()
    for initial, epochs in ((0, 1), (1, 2)):
        options = {"initial_epoch": initial, "epochs": epochs, "callbacks": [KLWarmUp(2), record]}
        vae.fit(digits.x_train[:40], batch_size=20, verbose=0, **options)
        np.testing.assert_allclose(record.betas, [initial / 2, initial / 2 + 0.25])


@pytest.mark.parametrize("arguments", [(0,), (1.5,), (2, -1.0), (2, float("nan"))])
def test_warm_up_names_bad_arguments(arguments):
    with pytest.raises(ValueError, match=r"`epochs` takes positive|`beta` must be"):
        KLWarmUp(*arguments)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_divergence_is_judged_by_the_likelihood(digits, scale):
    """A loss of 2e4 nats a pixel has no place under coins, and is a slow start under a narrow Gaussian."""
    from vae_utils.training import StopAtDivergence

    stop = StopAtDivergence()
    stop.set_model(dense_vae(hidden=(8,)))
    high = scale * 1e4 * 784
    if scale > 1:
        with pytest.raises(FloatingPointError, match=r"diverged: the loss of epoch 1 is 1\.57e\+07"):
            stop.on_epoch_end(0, {"loss": high})
    else:
        stop.on_epoch_end(0, {"loss": high})
    stop.set_model(dense_vae(hidden=(8,), likelihood="gaussian"))
    stop.on_epoch_end(0, {"loss": high})
    with pytest.raises(FloatingPointError):
        stop.on_epoch_end(0, {"loss": float("nan")})

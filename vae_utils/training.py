"""What surrounds a training: the way in for the data, callbacks, and ways round faults of Keras and TensorFlow."""

import contextlib
import functools
import weakref

import keras
import numpy as np

from vae_utils._replicas import count_replicas
from vae_utils._validation import as_numbers, check_sizes


def dataset_from_arrays(data, batch_size=32, shuffle=True):
    """Make of arrays the batches that Keras makes of them, in a `tf.data.Dataset` whose epochs end without a wait.

    `tf.data` tunes Keras' own data set while it is read, in rounds that double from 10 ms. When it misses the end of
    an epoch, the epoch lasts until the round is over, up to twice as long. Keras also keeps copies of the arrays.
    `VAE` uses this function; for another model, write `model.fit(dataset_from_arrays(x, 100), shuffle=False)`.

    Args:
        data: Array, or tuple or list of arrays of one length, also nested: inputs, or inputs and targets.
        batch_size: Rows in a batch; the last one may have fewer.
        shuffle: Whether to shuffle, in every epoch anew; after `keras.utils.set_random_seed` always alike, as in Keras.

    Returns:
        Data set of batches, or of tuples of them.

    Raises:
        ValueError: If the arrays are empty, differ in length or hold no numbers, or the size is no positive integer.
    """
    import tensorflow as tf

    check_sizes(batch_size=batch_size)
    arrays = [as_numbers(part, "data") for part in (keras.tree.flatten(data) if _is_pair(data) else [data])]
    length = len(arrays[0]) if arrays and arrays[0].shape else 0
    holes = _is_pair(data) and not all(map(keras.tree.flatten, data))  # an empty list, which `flatten` leaves out
    if holes or length == 0 or any(array.shape[:1] != (length,) for array in arrays):
        raise ValueError(f"`data` must hold arrays of one length, 1 or more. Received: {[a.shape for a in arrays]}")
    arrays = [as_keras_floats(array) for array in arrays]

    def order(_):
        rows = tf.range(length, dtype=tf.int64)
        return tf.random.shuffle(rows) if shuffle else rows

    # In NumPy: TensorFlow would copy the whole arrays first, and keep the memory of two such copies for good. The
    # function stays in memory until Python collects it. So the data set holds the arrays, and frees them at its end.
    held, dtypes, shapes = zip(*[(weakref.ref(array), array.dtype, array.shape[1:]) for array in arrays], strict=True)

    def pick(rows):
        picked = tf.numpy_function(lambda rows: [array()[rows] for array in held], [rows], dtypes)
        picked = [tf.ensure_shape(part, (*rows.shape, *shape)) for part, shape in zip(picked, shapes, strict=True)]
        return keras.tree.pack_sequence_as(data, picked) if _is_pair(data) else picked[0]

    options = tf.data.Options()
    options.autotune.enabled = False
    found = tf.data.Dataset.range(1).map(order).rebatch(batch_size).map(pick).prefetch(2)
    found = found.apply(tf.data.experimental.assert_cardinality(-(-length // batch_size))).with_options(options)
    found.arrays = arrays
    return found


def row_slices(n, size):
    """Slices that cut n rows into parts of `size`, the last one smaller."""
    return [slice(start, start + size) for start in range(0, n, size)]


def compiled(function, arrays):
    """On TensorFlow: the function, traced once for arrays of these types and any number of rows."""
    import tensorflow as tf

    given = [tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in arrays]
    return tf.function(function, autograph=False).get_concrete_function(*given)


def _is_pair(data):
    return isinstance(data, (tuple, list))


def as_keras_floats(array):
    """Floats of Keras' standard width, which Keras makes of arrays but not of data sets; other numbers as they are."""
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(keras.config.floatx(), copy=False) if is_float else array


class StopAtDivergence(keras.callbacks.Callback):
    """Ends a training whose loss is no number any more, or is beyond all bounds of its likelihood.

    `VAE.fit` uses it always. It raises `FloatingPointError` at the end of the epoch.
    """

    def on_epoch_end(self, epoch, logs=None):
        limit = self.model.likelihood.highest_loss * np.prod(self.model.image_shape)
        if not abs(logs["loss"]) < limit:  # also catches NaN, which compares false
            raise FloatingPointError(
                f"Training diverged: the loss of epoch {epoch + 1} is {logs['loss']:.3g}. Lower the learning rate, "
                "and start from a new model: this one is lost."
            )


class KLWarmUp(keras.callbacks.Callback):
    """Raises β evenly from 0, batch by batch, so that the decoder learns to use z before the KL divergence bites.

    Args:
        epochs: Number of epochs after which β has its last value.
        beta: That value.

    Raises:
        ValueError: If `epochs` is not a positive integer, or β is negative.

    Source: Bowman et al. (2016), https://arxiv.org/abs/1511.06349, section 3.1; Sønderby et al. (2016),
    https://arxiv.org/abs/1602.02282, section 2.2.
    """

    def __init__(self, epochs, beta=1.0):
        super().__init__()
        check_sizes(epochs=epochs)
        if not 0 <= beta < np.inf:
            raise ValueError(f"`beta` must be a number, finite and not negative. Received: {beta!r}")
        self.epochs, self.beta = epochs, float(beta)
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        batches = self.params.get("steps") or 1  # an endless data set has no number of batches: a step an epoch
        done = (self.epoch + min(batch / batches, 1)) / self.epochs
        self.model.beta = self.beta * min(done, 1)

    def on_train_end(self, logs=None):
        if self.epoch + 1 >= self.epochs:
            self.model.beta = self.beta


@contextlib.contextmanager
def workarounds(model):
    """For the length of one `fit` or `evaluate`, go round faults of Keras and TensorFlow, and leave no trace.

    - TensorFlow keeps each compiled step for good whose optimizer adds up gradients over replicas, also where there
      is one replica, and nothing to add: https://github.com/tensorflow/tensorflow/issues/61791.
    - With several replicas, Keras takes the mean of their parts of the first batch, only to learn its shape; the parts
      of a batch that does not divide evenly have no mean.
    - `BackupAndRestore` leaves the epoch that it restored in the model, and the next `fit` would skip as many.
    """
    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "tensorflow" and count_replicas(model) > 1:
            build = functools.partial(_build_from_first_replica, model)
            stack.enter_context(_replaced(model, "_maybe_symbolic_build", build))
        elif keras.backend.backend() == "tensorflow" and model.compiled and model.optimizer is not None:
            stack.enter_context(_replaced(model.optimizer, "_all_reduce_sum_gradients", list))
        try:
            yield
        finally:
            model._initial_epoch = None


def _build_from_first_replica(model, iterator):
    for _, _, batches in iterator:
        first = keras.tree.map_structure(
            lambda part: model.distribute_strategy.experimental_local_results(part)[0], next(batches)
        )
        return type(model)._maybe_symbolic_build(model, data_batch=first)
    return None


@contextlib.contextmanager
def _replaced(thing, name, value):
    before = vars(thing).get(name)  # the object's own; what its class has comes back by itself
    setattr(thing, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(thing, name)
        else:
            setattr(thing, name, before)

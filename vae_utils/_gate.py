"""The way into a model for data: from arrays and from data sets of all kinds, only what the model takes."""

import contextlib
import copy
import types
import weakref

import keras
import numpy as np

from vae_utils._replicas import check_shares_out, count_replicas
from vae_utils._validation import as_numbers, check_weights
from vae_utils.training import as_keras_floats, dataset_from_arrays


def is_data_set(x):
    """Whether `x` is made of batches: a `tf.data.Dataset`, a `PyDataset`, a generator, a PyTorch `DataLoader`, …"""
    is_array = hasattr(x, "__array__") or isinstance(x, (list, tuple, dict, set, str, bytes))
    return not is_array and (hasattr(x, "__getitem__") or hasattr(x, "__iter__"))


class Gate:
    """Lets into a model only what it takes, from arrays and from data sets of all kinds.

    Args:
        model: A model with `check_images(x)`, which raises `ValueError`.
        uses_targets: Whether something is done with targets. If not, they must be the images.
    """

    def __init__(self, model, uses_targets=False):
        self.model = weakref.proxy(model)  # TensorFlow keeps what a data set calls for longer than it should
        self.uses_targets = uses_targets
        self.errors = []
        self.has_ordered = False  # whether what was admitted last comes in an order that Keras must leave

    def admit(self, x, y=None, sample_weight=None, batch_size=None, shuffle=False, as_arrays=False):
        """Check what a method of Keras is given, and return `(x, y, sample_weight)` for Keras.

        Data sets come back as ones that check each batch on its way. Arrays come back as a data set, all three in one,
        on TensorFlow with one device, unless `as_arrays`: Keras splits and counts arrays only.
        """
        if is_data_set(x):
            return self._admit_data_set(x), y, sample_weight
        self.model.check_images(x)
        x = tuple(x) if isinstance(x, (list, tuple)) else x
        images = keras.tree.flatten(x)[0]
        n = len(images)
        if y is not None:
            self._check_targets(images, y, n)
        if sample_weight is not None:
            check_weights(sample_weight, n)
            y = np.zeros(n) if y is None else y  # Keras drops the weights where there is no target
        if not as_arrays:
            size = batch_size or 32
            check_shares_out(min(n, size))
            check_shares_out(n % size)
        if as_arrays or keras.backend.backend() != "tensorflow" or count_replicas(self.model) > 1:
            return x, y, sample_weight
        parts = tuple(part for part in (x, y, sample_weight) if part is not None)
        self.has_ordered = shuffle
        data = parts if len(parts) > 1 or isinstance(x, tuple) else x
        return _checked(dataset_from_arrays(data, batch_size or 32, shuffle)), None, None

    def _admit_data_set(self, data):
        self.has_ordered = not isinstance(data, keras.utils.PyDataset)  # or Keras warns that it can't
        if getattr(data, "is_checked", False):
            return data
        if hasattr(data, "element_spec") and hasattr(data, "map"):  # a tf.data.Dataset
            return _checked(self._admit_tf_data(data))
        if isinstance(data, keras.utils.PyDataset):
            return _checked(_GatedPyDataset(data, self))
        if isinstance(data, types.GeneratorType):
            return (self.check_batch(batch) for batch in data)
        if hasattr(data, "collate_fn"):  # PyTorch's DataLoader
            return _gated_loader(data, self)
        raise ValueError(
            "A data set must be a `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator or a PyTorch `DataLoader`. "
            f"Received: a {type(data).__name__}"
        )

    @contextlib.contextmanager
    def own_errors(self):
        """Raise what the gate found, where a data set's engine would wrap it in an error of its own."""
        try:
            yield
        except Exception as error:
            found = [own for own in self.errors if own is error or str(own) in str(error)]
            if not found:
                raise
            raise found[0] from None

    def check_batch(self, batch):
        """Check `x`, `(x, y)` or `(x, y, sample_weight)`, and return it as a tuple."""
        x, *others = batch if isinstance(batch, (tuple, list)) else (batch,)
        return (self._check(x, *others), *others)

    def _check(self, x, y=None, sample_weight=None, *_):
        try:
            self.model.check_images(x)
            images = keras.tree.flatten(x)[0]
            check_shares_out(len(images))
            if getattr(y, "shape", None) == images.shape:
                self._check_targets(images, y, len(images))
            if sample_weight is not None:
                check_weights(sample_weight, len(images))
        except ValueError as error:
            self.errors.append(error)
            raise
        x = tuple(x) if isinstance(x, list) else x  # as Keras wants it in batches
        return keras.tree.map_structure(lambda part: as_keras_floats(as_numbers(part)), x)

    def _check_targets(self, images, y, n):
        lengths = {len(part) if np.shape(part) else 0 for part in keras.tree.flatten(y)}
        if lengths != {n}:
            raise ValueError(f"`y` must hold a target for each of the {n} images. Received: {sorted(lengths)}")
        if not self.uses_targets and y is not images and not np.array_equal(as_numbers(images), as_numbers(y, "y")):
            raise ValueError(
                "`y` means nothing here: the images are their own target. Leave it out; what the decoder should see, "
                "such as labels, is a condition, a second input of encoder and decoder."
            )

    def _admit_tf_data(self, data):
        import tensorflow as tf

        if isinstance(data.element_spec, dict):
            self.model.check_images(data.element_spec)

        @tf.autograph.experimental.do_not_convert
        def check_batch(x, *others):
            parts = keras.tree.flatten(x)
            n, layout = len(parts), keras.tree.map_structure(lambda _: 0, x)  # `check` must hold no tensor of a graph
            seen = [other if isinstance(other, tf.Tensor) else () for other in others]  # () for nested targets

            def check(*arrays):
                return keras.tree.flatten(self._check(keras.tree.pack_sequence_as(layout, arrays[:n]), *arrays[n:]))

            dtypes = [keras.config.floatx() if part.dtype.is_floating else part.dtype for part in parts]
            checked = tf.numpy_function(check, parts + seen, dtypes)
            for part, given in zip(checked, parts, strict=True):
                part.set_shape(given.shape)
            return (keras.tree.pack_sequence_as(x, checked), *others)

        return data.map(check_batch)


def _checked(data):
    """Mark a data set as one that a gate has seen: `fit` hands its own on to `evaluate`."""
    data.is_checked = True
    return data


class _GatedPyDataset(keras.utils.PyDataset):
    def __init__(self, data, gate):
        super().__init__(data.workers, data.use_multiprocessing, data.max_queue_size)
        self.data, self.gate = data, gate

    @property
    def num_batches(self):
        return self.data.num_batches

    def __getitem__(self, index):
        return self.gate.check_batch(self.data[index])

    def on_epoch_begin(self):
        self.data.on_epoch_begin()

    def on_epoch_end(self):
        self.data.on_epoch_end()


def _gated_loader(data, gate):
    import torch

    class DataLoader(type(data)):
        def __iter__(self):  # here, not in `collate_fn`, which may run in another process
            for batch in super().__iter__():
                x, *others = gate.check_batch(batch)
                yield (keras.tree.map_structure(torch.as_tensor, x), *others)

    data = copy.copy(data)
    data.__class__ = DataLoader
    return data

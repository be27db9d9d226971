"""Does the same on one device and on two, and keeps what came out, for `test_replicas.py`.

A process of its own, `python two_devices.py FILE`, since both TensorFlow and JAX count their devices once.
"""

import contextlib
import os
import pickle
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"  # JAX's way to have two

import keras
import numpy as np
import tensorflow as tf

from vae_utils import VAE, conv_vae, dense_vae
from vae_utils.likelihoods import Gaussian

ON_JAX = keras.backend.backend() == "jax"
SHAPE = (8, 8, 1)
SIZE = 34 if ON_JAX else 33  # of a batch; JAX deals out even ones only
rng = np.random.default_rng(0)
IMAGES = rng.random((100, *SHAPE)).astype("float32")
LABELS = (np.arange(100) % 10).astype("int32")
WEIGHTS = rng.random(100).astype("float32")

if ON_JAX:
    TWO = keras.distribution.DataParallel()
else:
    [cpu] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    TWO = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])  # one: a second one waits for the first for good


def batches(size, *parts):
    return tf.data.Dataset.from_tensor_slices(parts).batch(size)


def with_penalties():
    vae = conv_vae(SHAPE, filters=(4,), hidden=4)
    images, (z_mean, z_log_var, _) = vae.encoder.input, vae.encoder.outputs
    z_mean = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5))(z_mean)
    z = vae.encoder.get_layer("z")([z_mean, z_log_var])
    return VAE(keras.Model(images, [z_mean, z_log_var, z]), vae.decoder)


class RaiseBeta(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        self.model.beta = batch / 2


class Case:
    """Batches of 33, 33, 33 and 1, all odd; of the last one a device gets nothing. With weights."""

    def __init__(self):
        self.images = self.fitted = self.evaluated = IMAGES
        self.fit_options = self.evaluate_options = {"batch_size": SIZE, "sample_weight": WEIGHTS}

    def build(self):
        return dense_vae(SHAPE, hidden=(8,))

    def outcome(self, devices):
        keras.utils.set_random_seed(0)
        with contextlib.ExitStack() as stack:
            with devices():
                vae = self.build()
                vae.compile(keras.optimizers.SGD(1e-4, momentum=0.9), jit_compile="auto" if ON_JAX else False)
            if ON_JAX:  # which asks for its devices again at each call
                stack.enter_context(devices())
            history = vae.fit(self.fitted, epochs=2, shuffle=False, verbose=0, **self.fit_options).history
            scores = [vae.evaluate(self.evaluated, verbose=0, **self.evaluate_options) for _ in range(2)]
            return {
                **history,
                "weights": np.concatenate([weight.ravel() for weight in vae.get_weights()]),
                "beta": vae.beta,
                "evaluate": scores[0],
                "evaluate again": scores[1],
                "predict": vae.predict(self.images, verbose=0),
                "encode": vae.encode(self.images),
                "sample": vae.sample(3, seed=0, condition=4 if vae.condition_shapes else None),
            }, vae


class Penalties(Case):
    """A model with `losses`, β changed by a callback, and validation."""

    build = staticmethod(with_penalties)

    def __init__(self):
        super().__init__()
        self.fit_options = {"batch_size": 50, "callbacks": [RaiseBeta()], "validation_data": IMAGES[: SIZE + 2]}
        self.evaluate_options = {"batch_size": 50}


class DataSets(Case):
    """Everything in data sets: images of 64 bits with a condition, labels, weights."""

    def __init__(self):
        inputs = (IMAGES.astype("float64"), LABELS)
        self.fitted = self.evaluated = batches(SIZE, inputs, LABELS, WEIGHTS)
        self.images = batches(SIZE, inputs)
        self.fit_options = {"validation_data": batches(SIZE, (IMAGES[:40], LABELS[:40]))}
        self.evaluate_options = {}

    def build(self):
        return dense_vae(SHAPE, hidden=(8,), num_classes=10, likelihood=Gaussian("learned"))


def noise():
    """z of one image in many rows."""
    images = np.repeat(IMAGES[:1], 5, axis=0)
    found = []
    for devices in (contextlib.nullcontext, TWO.scope):
        keras.utils.set_random_seed(0)
        with devices():
            encoder = dense_vae(SHAPE, hidden=(8,)).encoder
        if not found:
            z = np.array(encoder(images)[2])
        else:
            [batch] = TWO.experimental_distribute_dataset(batches(5, images))
            z = TWO.run(lambda x, encoder=encoder: encoder(x[0])[2], args=(batch,))
            z = np.concatenate(TWO.experimental_local_results(z))
        found.append({"z": z})
    return found


def keras_on_an_odd_batch():
    """The error of a model of Keras whose first batch does not divide, or None."""
    with TWO.scope():
        model = keras.Sequential([keras.Input(SHAPE), keras.layers.Dense(1)])
        model.compile("sgd", "mse", jit_compile=False)
    try:
        model.fit(IMAGES[:33], IMAGES[:33], batch_size=33, verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def odd_batch():
    """What JAX's users are told of a batch that does not divide."""
    told = []
    with TWO.scope():
        for call in (
            lambda vae: vae.fit(IMAGES[:33], batch_size=32, verbose=0),
            lambda vae: vae.fit(IMAGES[:32], validation_data=IMAGES[:31], verbose=0),
            lambda vae: vae.evaluate(batches(33, IMAGES), verbose=0),
            lambda vae: vae.predict(IMAGES[:33], verbose=0),
        ):
            vae = Case().build()
            vae.compile("sgd")
            try:
                call(vae)
                told.append("nothing")
            except ValueError as error:
                told.append(str(error))
    return told


def main(path):
    found = {}
    for case in (Case, Penalties, DataSets):
        pairs = [case().outcome(devices) for devices in (contextlib.nullcontext, TWO.scope)]
        found[case.__name__] = [outcome for outcome, _ in pairs]
    vae = pairs[1][1]
    found["left behind"] = [
        name
        for name in ("_maybe_symbolic_build", "_all_reduce_sum_gradients")
        if name in {**vars(vae), **vars(vae.optimizer)}
    ]
    vae.beta = 0.5
    vae.save(path.parent / "vae.keras")
    loaded = keras.saving.load_model(path.parent / "vae.keras")
    data = case().evaluated
    found["saved"] = [{"beta": model.beta, "evaluate": model.evaluate(data, verbose=0)} for model in (vae, loaded)]
    if not ON_JAX:
        found["noise"] = noise()
        found["Keras on an odd batch"] = keras_on_an_odd_batch()
    else:
        found["odd batch"] = odd_batch()
    path.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

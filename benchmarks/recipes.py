"""The published recipes, written anew in plain Keras: their layers, loss, optimizer and loops, with Keras' defaults."""

import keras
import tensorflow as tf
from keras import layers, ops


class Sampling(layers.Layer):
    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs):
        mean, log_var = inputs
        return mean + ops.exp(0.5 * log_var) * keras.random.normal(ops.shape(mean), seed=self.seed_generator)


def kl(mean, log_var):
    return -0.5 * ops.sum(1 + log_var - ops.square(mean) - ops.exp(log_var), axis=-1)


def pixel_cost(x, p):
    """Cross-entropy of probabilities, clipped by Keras, summed over the 784 pixels."""
    x, p = (ops.reshape(array, (-1, 784)) for array in (x, p))
    return 784 * keras.losses.binary_crossentropy(x, p)


class AddLoss(layers.Layer):
    def call(self, inputs):
        x, p, mean, log_var = inputs
        self.add_loss(ops.mean(pixel_cost(x, p) + kl(mean, log_var)))
        return p


def blog_dense():
    """The Keras blog (2016) and its script: 784–256–2–256–784, RMSprop, the loss added by a layer."""
    x = keras.Input((784,))
    h = layers.Dense(256, activation="relu")(x)
    mean, log_var = layers.Dense(2)(h), layers.Dense(2)(h)
    z = Sampling()([mean, log_var])
    p = layers.Dense(784, activation="sigmoid")(layers.Dense(256, activation="relu")(z))
    model = keras.Model(x, AddLoss()([x, p, mean, log_var]))
    model.compile(optimizer="rmsprop", loss=None)
    return model


def conv_parts():
    """The convolutional encoder and decoder that the 2020 post and keras.io share."""
    x = keras.Input((28, 28, 1))
    h = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(x)
    h = layers.Conv2D(64, 3, strides=2, padding="same", activation="relu")(h)
    h = layers.Dense(16, activation="relu")(layers.Flatten()(h))
    mean, log_var = layers.Dense(2)(h), layers.Dense(2)(h)
    encoder = keras.Model(x, [mean, log_var, Sampling()([mean, log_var])])
    z = keras.Input((2,))
    h = layers.Reshape((7, 7, 64))(layers.Dense(7 * 7 * 64, activation="relu")(z))
    h = layers.Conv2DTranspose(64, 3, strides=2, padding="same", activation="relu")(h)
    h = layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu")(h)
    p = layers.Conv2DTranspose(1, 3, padding="same", activation="sigmoid")(h)
    return encoder, keras.Model(z, p)


def post_conv():
    """The 2020 post: the loss added by a layer, Adam at 1e-3 (and batches of 32, patience 2, which `fit` is given)."""
    encoder, decoder = conv_parts()
    x = keras.Input((28, 28, 1))
    mean, log_var, z = encoder(x)
    model = keras.Model(x, AddLoss()([x, decoder(z), mean, log_var]))
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=None)
    return model


class TrainStepVAE(keras.Model):
    """keras.io's example: a `train_step` written out, with three running means."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = conv_parts()
        self.means = [keras.metrics.Mean(name=name) for name in ("loss", "reconstruction_loss", "kl_loss")]

    @property
    def metrics(self):
        return self.means

    def train_step(self, x):
        with tf.GradientTape() as tape:
            mean, log_var, z = self.encoder(x)
            reconstruction = ops.mean(pixel_cost(x, self.decoder(z)))
            divergence = ops.mean(kl(mean, log_var))
            loss = reconstruction + divergence
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
        )
        for tracker, value in zip(self.means, (loss, reconstruction, divergence), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.means}


def keras_io_conv():
    model = TrainStepVAE()
    model.compile(optimizer=keras.optimizers.Adam())
    return model

"""What a model's arithmetic takes with nothing around it: the reason for a ratio, where one falls short."""

import statistics
import time

import tensorflow as tf
from keras import layers, ops

from benchmarks.base import QUICK


def median_seconds(function, calls, rounds=5):
    """Seconds of one call, the median of rounds of `calls` each, after a warm-up."""
    function()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            found = function()
        ops.convert_to_numpy(found[-1])
        seconds.append((time.perf_counter() - begin) / calls)
    return statistics.median(seconds)


def product(layer, x):
    kernel = layer.kernel.value
    if isinstance(layer, layers.Conv2DTranspose):
        return ops.conv_transpose(x, kernel, strides=layer.strides, padding=layer.padding)
    if isinstance(layer, layers.Conv2D):
        return ops.conv(x, kernel, strides=layer.strides, padding=layer.padding)
    return ops.matmul(x, kernel)


def with_kernels(model):
    return [layer for layer in model.layers if hasattr(layer, "kernel")]


def training_products(model, n, batch_size):
    """Seconds for `n` images of a training's matrix products and convolutions, forward and backward, and no more."""
    parts = with_kernels(model.encoder) + with_kernels(model.decoder)
    inputs, gradients = (
        [tf.random.normal((batch_size, *tensor.shape[1:])) for tensor in tensors]
        for tensors in ([layer.input for layer in parts], [layer.output for layer in parts])
    )

    @tf.function
    def step():
        found = []
        for layer, x, gradient in zip(parts, inputs, gradients, strict=True):
            # Nobody needs the gradient with respect to the images.
            sources = [layer.kernel.value] if layer is parts[0] else [layer.kernel.value, x]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                y = product(layer, x)
            found += [y, *tape.gradient(y, sources, output_gradients=gradient)]
        return found

    return median_seconds(step, 3 if QUICK else 100) * n / batch_size


def decoder_products(decoder, rows):
    """Seconds of a dense decoder's matrix products and the softplus of its logits, for `rows` codes."""
    inputs = [tf.random.normal((rows, layer.kernel.shape[0])) for layer in with_kernels(decoder)]

    def decode():
        found = [product(layer, x) for layer, x in zip(with_kernels(decoder), inputs, strict=True)]
        return [*found, ops.softplus(found[-1])]

    return median_seconds(decode, 3 if QUICK else 50)


def were_all_else_free(ours, theirs, what):
    """The note of a row that cannot reach its target."""
    return f"of ours, {what} alone take {ours:.3g} s: were all else free, the ratio would be {theirs / ours:.1f}"

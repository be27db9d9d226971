"""Checks that several modules share. Each raises a `ValueError` that names what was got and what was expected."""

import keras
import numpy as np
from keras import ops


def as_numbers(x, name="x"):
    """Return `x` as an array of real numbers."""
    try:
        x = np.asarray(x)
    except Exception as error:  # ragged lists, and objects of all kinds that claim to be arrays
        raise ValueError(f"`{name}` must be an array of numbers. Received: {error}") from error
    if x.dtype.kind not in "biuf" and x.dtype.name != "bfloat16":
        raise ValueError(f"`{name}` must hold numbers. Received: dtype {x.dtype}")
    return x


def check_pixels(x, low=0, high=1):
    """Return `x` as an array of values in [low, high]; an infinite end asks for finite values."""
    x = as_numbers(x)
    if not x.size:
        return x
    lowest, highest = x.min(), x.max()  # NaN, if there is one, which compares false
    if lowest >= low and highest <= high and np.isfinite(lowest) and np.isfinite(highest):
        return x
    ends = [f"{'[' if np.isfinite(low) else '('}{low}", f"{high}{']' if np.isfinite(high) else ')'}"]
    hint = " Divide by 255 first." if lowest >= 0 and 1 == high < highest else ""
    nans = int(np.isnan(x).sum())
    received = f"{nans} values that are NaN." if nans else f"values from {lowest:g} to {highest:g}.{hint}"
    raise ValueError(f"Pixels must lie in {', '.join(ends).replace('inf', '∞')}. Received: {received}")


def check_sizes(**named):
    """Let pass what is a positive integer."""
    for name, size in named.items():
        if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 1:
            raise ValueError(f"`{name}` takes positive integers. Received: {size!r}")


def check_lists_of_sizes(**named):
    """Let pass lists and tuples of positive integers."""
    for name, sizes in named.items():
        if not isinstance(sizes, (list, tuple)):
            raise ValueError(f"`{name}` must be a list or a tuple of positive integers. Received: {sizes!r}")
        for size in sizes:
            check_sizes(**{name: size})


def check_weights(sample_weight, length):
    """Let pass one finite weight for each of `length` examples, none negative."""
    weights = as_numbers(sample_weight, "sample_weight")
    if weights.shape not in ((length,), (length, 1)) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(
            f"`sample_weight` must hold {length} finite values, 0 or more. Received: {weights.shape}, {weights}"
        )


def to_tensors(**named):
    """Convert to tensors of the widest floating-point type among them, whose shapes must broadcast."""
    try:
        tensors = [ops.convert_to_tensor(value) for value in named.values()]
        dtype = keras.backend.result_type(float, *[tensor.dtype for tensor in tensors])
        if "complex" in dtype:
            raise ValueError(f"dtype {dtype}")
        # A size that is not known yet counts as 1, which fits everything.
        np.broadcast_shapes(*[[1 if size is None else size for size in tensor.shape] for tensor in tensors])
    except (TypeError, ValueError) as error:
        names = ", ".join(f"`{name}`" for name in named)
        raise ValueError(f"{names} must be real and must have shapes that broadcast. Received: {error}") from error
    return [ops.cast(tensor, dtype) for tensor in tensors]


def to_latent_tensors(**named):
    """`to_tensors`, whose last axes must all have the same size: that of the latent space."""
    tensors = to_tensors(**named)
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if any(not shape or shape[-1] != shapes[0][-1] for shape in shapes):
        received = ", ".join(f"{name}.shape={shape}" for name, shape in zip(named, shapes, strict=True))
        raise ValueError(f"The arguments must have the same last axis, the latent dimensions. Received: {received}")
    return tensors


def check_images(x, image_shape, condition_shapes, likelihood):
    """Let pass arrays that are images of this shape and values that the likelihood takes, with a condition if any."""
    parts = x if condition_shapes and isinstance(x, (list, tuple)) else [x]
    if len(parts) != 1 + len(condition_shapes) or not all(hasattr(part, "__array__") for part in parts):
        expected = "[images, condition], two arrays" if condition_shapes else "one array of images"
        types = f" of {[type(part).__name__ for part in x]}" if isinstance(x, (list, tuple)) else ""
        keys = f" with {sorted(map(str, x))}" if isinstance(x, dict) else ""
        raise ValueError(f"Pass {expected}, or a data set. Received: a {type(x).__name__}{types}{keys}")
    images, *condition = (as_numbers(part) for part in parts)
    if images.shape[1:] != image_shape or images.size == 0:
        expected = ", ".join(map(str, ("n", *image_shape)))
        raise ValueError(f"Images must have the shape ({expected}), n ≥ 1. Received: {images.shape}")
    likelihood.check(images)
    for part, shape in zip(condition, condition_shapes, strict=True):
        _check_condition(part, shape, len(images))


def expand_condition(condition, condition_shapes, n):
    """A condition for each of n points, from as many or from one; `condition_shapes` is empty for a model with none."""
    if condition is None or not condition_shapes:
        needs = "needs a" if condition_shapes else "takes no"
        raise ValueError(f"This model {needs} `condition`. Received: {condition!r}")
    condition = as_numbers(condition, "condition")
    if condition.shape == condition_shapes[0]:
        condition = np.repeat(condition[None], n, axis=0)
    _check_condition(condition, condition_shapes[0], n)
    return condition


def _check_condition(condition, shape, n):
    if condition.shape != (n, *shape) or not np.isfinite(condition).all():
        expected = ", ".join(map(str, (n, *shape)))
        raise ValueError(f"`condition` must hold finite values in the shape ({expected}). Received: {condition.shape}")


def check_latent(z, latent_dim):
    """Return `z` as an array of latent points."""
    z = as_numbers(z, "z").astype("float32")
    if z.ndim != 2 or z.shape[1] != latent_dim or len(z) == 0 or not np.isfinite(z).all():
        raise ValueError(f"`z` must hold finite values in the shape (n, {latent_dim}). Received: shape {z.shape}")
    return z


def check_parts_match(encoder, decoder, likelihood):
    """Let pass an encoder, a decoder and a likelihood that make a VAE."""
    if not all(getattr(part, "outputs", None) for part in (encoder, decoder)):
        raise ValueError(f"The encoder and the decoder must be built Keras models. Received: {encoder!r}, {decoder!r}")
    outputs = [tuple(output.shape) for output in encoder.outputs]
    latent, *decoder_condition = (tuple(tensor.shape) for tensor in decoder.inputs)
    images, *condition = (tuple(tensor.shape) for tensor in encoder.inputs)
    if outputs != [latent] * 3 or len(latent) != 2:
        raise ValueError(
            "The encoder must give [z_mean, z_log_var, z], each of the decoder's input shape (batch, latent_dim). "
            f"Received: encoder outputs {outputs}, decoder input {latent}"
        )
    if condition != decoder_condition or len(condition) > 1:
        raise ValueError(
            "A condition is one second input, of the same shape in encoder and decoder. "
            f"Received: beside the images {condition}, beside z {decoder_condition}"
        )
    expected = (*images[:-1], images[-1] * likelihood.parameters_per_pixel)
    received = tuple(decoder.outputs[0].shape)
    if len(decoder.outputs) != 1 or received != expected:
        raise ValueError(
            f"For {type(likelihood).__name__} and images {images} the decoder must give {expected}: "
            f"{likelihood.parameters_per_pixel} per pixel, along the last axis. Received: decoder output {received}"
        )
    activation = last_activation(decoder)
    if likelihood.takes_logits and activation:
        raise ValueError(
            f"{type(likelihood).__name__} takes logits, which may be any real number, and applies the sigmoid itself: "
            f"leave out the activation at the decoder's end. Received: a decoder that ends in `{activation}`"
        )


#: What may stand behind the last activation without changing any number.
_RESHAPING = {"Reshape", "Flatten", "Permute", "Cropping1D", "Cropping2D", "Cropping3D", "Transpose", "Identity"}
_RESHAPING |= {"InputLayer", "Cast", "ExpandDims", "Squeeze"}
_ACTIVATIONS = {"Sigmoid", "HardSigmoid", "Softmax", "Tanh", "HardTanh", "ReLU", "Relu", "Relu6", "Softplus", "Exp"}


def last_activation(model):
    """Name of the activation that a model ends in, or None if it ends in a linear layer."""
    for operation in _from_the_end(model):
        name = type(operation).__name__
        activation = getattr(getattr(operation, "activation", None), "__name__", "linear")
        if name in _ACTIVATIONS:
            return name
        if activation != "linear":
            return activation
        if name not in _RESHAPING and name != "Activation":
            return None
    return None


def _from_the_end(model):
    for operation in reversed(getattr(model, "operations", None) or model.layers):
        if hasattr(operation, "layers"):  # a model within the model
            yield from _from_the_end(operation)
        else:
            yield operation

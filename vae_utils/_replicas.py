"""What a replica of a `tf.distribute` strategy must know of the others. With one device, there is nothing to know."""

import keras
from keras import ops


def count_replicas(model):
    """Devices among which a step of this model deals out its batch; 1 on the other backends, which do it unseen."""
    strategy = getattr(model, "distribute_strategy", None)
    return getattr(strategy, "num_replicas_in_sync", 1)


def check_shares_out(rows):
    """Let pass a batch of so many rows that `keras.distribution` can share out, which JAX does evenly or not at all."""
    distribution = keras.distribution.distribution()
    if keras.backend.backend() != "jax" or distribution is None:
        return
    mesh = distribution.device_mesh
    devices = mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]
    if rows % devices:
        raise ValueError(
            f"On JAX, the rows of each batch must divide by {devices}, the number of devices. Received: {rows}. Choose "
            "another `batch_size`, or leave rows out."
        )


def _among_others():
    """The context of a replica that runs beside others, or None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()  # None between the steps
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def _gather(context, value):
    """The values of all replicas, one above the other."""
    return context.all_gather(ops.reshape(value, (1,)), axis=0)


def draw_rows(draw, rows):
    """`draw(n)` for a batch of n rows, of which a replica keeps its own.

    All replicas share the state of the random numbers. Without this they would draw the same noise; with it, they
    draw what one device would draw for the whole batch.
    """
    context = _among_others()
    if context is None:
        return draw(rows)
    rows_of_each = _gather(context, rows)
    start = ops.sum(rows_of_each[: context.replica_id_in_sync_group])
    return draw(ops.sum(rows_of_each))[start : start + rows]


def mean_over_batch(values):
    """Mean of `values`, one per example, over the whole batch, as a loss that Keras may sum over replicas.

    Replicas need not have the same number of rows. Each one's gradient is that of its part of the mean, and their sum
    that of the mean. Each one's value is the mean's share, since Keras averages these with the rows as weights.
    """
    context = _among_others()
    if context is None:
        return ops.mean(values)
    all_rows = ops.sum(_gather(context, ops.cast(ops.shape(values)[0], values.dtype)))
    part = ops.sum(values) / all_rows
    share = ops.sum(_gather(context, ops.stop_gradient(part))) / context.num_replicas_in_sync
    return part + ops.stop_gradient(share - part)


def share_of(loss):
    """A loss that every replica computes alike, such as a penalty on weights, as its share of the sum over replicas."""
    context = _among_others()
    return loss if context is None else loss / context.num_replicas_in_sync

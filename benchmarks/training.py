"""Training beside the published recipes, PyTorch and JAX, and beside what the machine can do."""

import json
import statistics
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from benchmarks import arithmetic, base, recipes
from benchmarks.base import QUICK, close, digits, images, interleave, row, scaled
from vae_utils import evaluation
from vae_utils.architectures import conv_vae, dense_vae
from vae_utils.models import VAE

#: What our rows compile with, as chapters 03 and 04 do: several steps per call of the compiled function, and XLA for
#: matrix products only, since it has slower convolutions on a CPU than TensorFlow itself.
DENSE = {"jit_compile": True, "steps_per_execution": 1 if QUICK else 50}
CONV = {"jit_compile": False, "steps_per_execution": 1 if QUICK else 10}

EPOCH = 60_000
PART = 15_000  # of an epoch, for convolutions
SHORT = {"n": 6_000, "rounds": 15}  # what happens now and then shows in many short rounds


class LastStep(keras.callbacks.Callback):
    async_safe = True  # so that Keras doesn't hold up each step for it

    def on_train_batch_end(self, batch, logs=None):
        self.time = time.perf_counter()


def trainer(model, x, batch_size, epochs=1, waits=None):
    """A function that trains and returns an epoch's seconds, up to the last step; it appends the rest to `waits`.

    After the last step of an array's batches Keras may wait, by chance, and longer or shorter on a faster machine. In
    the other rows that would cover what they measure.
    """
    last, waits = LastStep(), [] if waits is None else waits

    def train():
        begin = time.perf_counter()
        model.fit(x, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[last])
        waits.append(time.perf_counter() - last.time)
        return (last.time - begin) / epochs

    return train


def copy_weights(source, target):
    for a, b in zip(source.trainable_variables, target.trainable_variables, strict=True):
        b.assign(a)


def loss_of(build, model):
    """−ELBO by the same function for every model: its weights are put into ours."""
    judge = build()
    copy_weights(model, judge)
    return float(-evaluation.elbo(judge, digits().x_test[:1_000]).mean())


def pair(build, theirs, optimizer, fast, n, batch_size, flat=False, rounds=None, waits=(None, None)):
    """Seconds of a pass over `n` digits by our model and theirs, which start from the same weights.

    After the warm-up both must have done the same number of steps and have the same loss. Their noise and the order
    of their batches differ, which moves the loss by well under the 3 % that are allowed.
    """
    x = images(n)
    ours = build()
    copy_weights(theirs, ours)
    ours.compile(optimizer, **fast)

    def check():
        close(int(ours.optimizer.iterations), int(theirs.optimizer.iterations), "steps", 0)
        close(loss_of(build, ours), loss_of(build, theirs), "−ELBO", 0.03)

    x_theirs = x.reshape(len(x), -1) if flat else x
    ours_epoch = trainer(ours, ops.convert_to_tensor(x), batch_size, waits=waits[0])
    theirs_epoch = trainer(theirs, x_theirs, batch_size, waits=waits[1])
    seconds = interleave(ours_epoch, theirs_epoch, check, None if QUICK else rounds)
    return scaled(seconds, EPOCH / len(x)), note_on_part(len(x))


def note_on_part(n):
    return "" if n == EPOCH else f"measured on {n:,} digits, scaled to {EPOCH:,}"


def profiled(model, batch_size, seconds, note):
    """The row with the reason for its ratio: what the arithmetic alone takes."""
    products = arithmetic.training_products(model, EPOCH, batch_size)
    why = arithmetic.were_all_else_free(products, statistics.median(seconds[1]), "matrix products and convolutions")
    return *seconds, "; ".join(filter(None, [note, why]))


@row("dense-epoch", "dense VAE, batch 100, one epoch", "Keras blog's recipe, plain fit", 4)
def dense_epoch():
    keras.utils.set_random_seed(0)
    theirs = recipes.blog_dense()
    found = pair(dense_vae, theirs, keras.optimizers.RMSprop(), DENSE, EPOCH, batch_size=100, flat=True, rounds=15)
    return profiled(dense_vae(), 100, *found)


@row("conv-epoch", "conv VAE, batch 128, one epoch", "keras.io's train_step recipe", 1.2)
def conv_epoch():
    keras.utils.set_random_seed(0)
    found = pair(conv_vae, recipes.keras_io_conv(), keras.optimizers.Adam(), CONV, EPOCH, batch_size=128)
    return profiled(conv_vae(), 128, *found)


def with_setting(build, settings, n, batch_size, **changed):
    """A setting beside the same training without it."""
    keras.utils.set_random_seed(0)
    without = build()
    without.compile(keras.optimizers.Adam(), **settings)
    seconds, note = pair(build, without, keras.optimizers.Adam(), {**settings, **changed}, n, batch_size)
    return *seconds, note


@row("dense-steps", "dense VAE, batch 100, 50 steps per call", "one step per call", None)
def dense_steps():
    return with_setting(dense_vae, {"jit_compile": False}, PART, 100, steps_per_execution=DENSE["steps_per_execution"])


@row("dense-xla", "dense VAE, batch 100, 50 steps per call, with XLA", "the same without XLA", None)
def dense_xla():
    return with_setting(dense_vae, {**DENSE, "jit_compile": False}, PART, 100, jit_compile=True)


@row("conv-xla", "conv VAE, batch 128, with XLA", "the same without XLA", None)
def conv_xla():
    return with_setting(conv_vae, CONV, PART // 8, 128, jit_compile=True)


class TunedVAE(VAE):
    """Our model with the batches that Keras makes of an array, which `tf.data` tunes while they are read."""

    def fit(self, *args, **kwargs):
        return keras.Model.fit(self, *args, **kwargs)


@row(
    "conv-wait",
    "conv VAE, longest wait after an epoch, batches that nobody tunes",
    "the same batches, made by Keras",
    None,
    by_chance=True,
)
def conv_wait():
    keras.utils.set_random_seed(0)
    start = conv_vae()
    tuned = TunedVAE(start.encoder, start.decoder)
    tuned.compile(keras.optimizers.Adam(), **CONV)
    waits, n = ([], []), len(images(SHORT["n"]))
    epochs, _ = pair(conv_vae, tuned, keras.optimizers.Adam(), CONV, batch_size=128, waits=waits, **SHORT)
    waits = [values[1:] for values in waits]  # the first belongs to the warm-up
    ours, theirs = (
        " ".join(f"{value:.2f}" for value in sorted(map(sum, zip(steps, rest, strict=True))))
        for steps, rest in zip(scaled(epochs, n / EPOCH), waits, strict=True)
    )
    note = f"measured on {n:,} digits; seconds of whole epochs: ours {ours}; Keras' {theirs}"
    return [max(waits[0])], [max(waits[1])], note


@row("conv-bfloat16", "conv VAE in mixed_bfloat16, one epoch", "the same in float32", None)
def conv_bfloat16():
    def mixed():
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
        try:
            return conv_vae()
        finally:
            keras.mixed_precision.set_global_policy("float32")

    keras.utils.set_random_seed(0)
    theirs = conv_vae()
    theirs.compile(keras.optimizers.Adam(), **CONV)
    x = images(PART)
    ours = mixed()
    copy_weights(theirs, ours)
    ours.compile(keras.optimizers.Adam(), **CONV)

    def check():
        close(loss_of(conv_vae, ours), loss_of(conv_vae, theirs), "−ELBO", 0.03)

    seconds = interleave(trainer(ours, x, 128), trainer(theirs, x, 128), check)
    return *scaled(seconds, EPOCH / len(x)), note_on_part(len(x))


def helper_pair(package, module, variants=("",), n=PART, **environment):
    """A pass of our conv model beside the same model, from the same weights, in another process."""
    base.require(package)
    keras.utils.set_random_seed(0)
    x = images(n)
    start = conv_vae()
    best = None
    for variant in variants:
        ours = conv_vae()
        copy_weights(start, ours)
        ours.compile(keras.optimizers.Adam(), **CONV)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "start.npz"
            np.savez(path, *[variable.numpy() for variable in start.trainable_variables])
            with base.Helper(module, len(x), path, variant, **environment) as theirs:

                def check(ours=ours, theirs=theirs):
                    close(ours.history.history["loss"][0], theirs.last["loss"], "mean loss of the first pass", 0.03)

                train = trainer(ours, x, 128, epochs=max(1, PART // len(x)))  # a second or two would be too short
                seconds = scaled(interleave(train, theirs.seconds, check), EPOCH / len(x))
        if best is None or statistics.median(seconds[1]) < statistics.median(best[0][1]):
            best = seconds, variant
    seconds, variant = best
    return seconds, "; ".join(filter(None, [variant and f"theirs: {variant}", note_on_part(len(x))]))


@row("conv-vs-torch", "conv VAE, batch 128, one epoch", "PyTorch, the better of eager and torch.compile", 1.5)
def conv_vs_torch():
    return profiled(conv_vae(), 128, *helper_pair("torch", "torch_helper", ("eager", "torch.compile")))


@row("conv-vs-jax", "conv VAE, batch 128, one epoch", "the same Keras code on JAX", None)
def conv_vs_jax():
    seconds, note = helper_pair("jax", "jax_helper", n=PART // 4, KERAS_BACKEND="jax")  # minutes an epoch on a CPU
    return *seconds, note


def training_flops(model):
    """Floating-point operations of a training step per image: forward, and twice that for the two gradients."""
    total = 0
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        if isinstance(layer, layers.Dense | layers.Conv2D | layers.Conv2DTranspose):
            moved = layer.input if isinstance(layer, layers.Conv2DTranspose) else layer.output
            total += 2 * int(np.prod(layer.kernel.shape)) * int(np.prod(moved.shape[1:-1]))
    return 3 * total


def share_of_peak(model, optimizer, fast, n, batch_size):
    """GFLOP/s of training and of a float32 matrix product, in turn."""
    x, size = images(n), 512 if QUICK else 4_096
    matrix = ops.convert_to_tensor(np.random.default_rng(0).random((size, size), "float32"))
    model.compile(optimizer, **fast)
    products = 3
    seconds = interleave(
        trainer(model, ops.convert_to_tensor(x), batch_size),
        lambda: [ops.convert_to_numpy(ops.matmul(matrix, matrix)[0, 0]) for _ in range(products)] and None,
    )
    work = training_flops(model) * len(x), products * 2 * size**3
    return [[flops / value / 1e9 for value in values] for flops, values in zip(work, seconds, strict=True)]


@row("dense-flops", "dense training step", "float32 matrix product", 0.5, unit="GFLOP/s", of_peak=True)
def dense_flops():
    model = dense_vae()
    return *share_of_peak(model, keras.optimizers.RMSprop(), DENSE, EPOCH, 100), products_alone(model, 100)


def products_alone(model, batch_size):
    speed = training_flops(model) * EPOCH / arithmetic.training_products(model, EPOCH, batch_size) / 1e9
    return f"the step's own small products, with nothing around them, reach {speed:.0f} GFLOP/s"


@row("conv-flops", "conv training step", "float32 matrix product", 0.5, unit="GFLOP/s", of_peak=True)
def conv_flops():
    model = conv_vae()
    return *share_of_peak(model, keras.optimizers.Adam(), CONV, PART, 128), products_alone(model, 128)


GOAL = 151.33  # nats: the best held-out −ELBO that the 2020 post prints
RECORD = base.FOLDER / "time_to_elbo.json"
OURS_EPOCHS = 6
THEIR_EPOCHS = 12  # after which the post prints its best value


class StopAtGoal(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training |= logs["val_loss"] <= GOAL


def ours_to_goal():
    """Chapter 04's recipe on a schedule of its own length: batches of 64, a warm-up, then a cosine."""
    steps = OURS_EPOCHS * -(-EPOCH // 64)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps - 400, warmup_target=4e-3, warmup_steps=400)
    vae = conv_vae()
    vae.compile(keras.optimizers.Adam(rate), **CONV)
    return vae


def record_time_to_elbo(seeds=3):
    """Train ours to the goal, seed by seed, and write down every epoch. It takes minutes."""
    record = {"goal": GOAL, "data": digits().name, "runs": []}
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        # The post holds out the test digits, and so do we here.
        history = ours_to_goal().fit(
            images(EPOCH),
            batch_size=64,
            epochs=OURS_EPOCHS,
            validation_data=digits().x_test,
            callbacks=[StopAtGoal()],
            verbose=2,
        )
        losses = history.history["val_loss"]
        record["runs"].append({"reached": losses[-1] <= GOAL, "val_loss": [round(loss, 2) for loss in losses]})
    if not QUICK:
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return record


@row("conv-time-to-elbo", f"conv VAE, until held-out −ELBO ≤ {GOAL}", "the 2020 post's recipe, batch 32", 3)
def conv_time_to_elbo():
    if not RECORD.exists():
        raise base.NotMeasuredError("no record yet: make benchmark ONLY=conv-time-to-elbo")
    runs = json.loads(RECORD.read_text("utf-8"))["runs"]
    epochs = statistics.median(len(run["val_loss"]) if run["reached"] else np.inf for run in runs)
    short = sum(not run["reached"] for run in runs)
    if epochs == np.inf:
        raise base.NotMeasuredError(f"{short} of {len(runs)} recorded runs stopped short of it")
    x = images(PART // 2)
    ours, theirs = interleave(trainer(ours_to_goal(), x, 64), trainer(recipes.post_conv(), x, 32))
    whole = EPOCH / len(x)
    note = (
        f"{epochs:g} epochs (median of {len(runs)} recorded runs; {short} stopped short of it) against the "
        f"{THEIR_EPOCHS} that the post prints, times an epoch's seconds, {note_on_part(len(x))}"
    )
    return scaled([ours], whole * epochs)[0], scaled([theirs], whole * THEIR_EPOCHS)[0], note

"""Interruption: killed and resumed, a training ends as if nothing had happened, as far as Keras allows.

`BackupAndRestore` restores the weights, the optimizer and the epoch; `Sampling` saves its noise with the weights. The
order in which `fit` shuffles an array follows from `keras.utils.set_random_seed`, and is the same in every epoch. A
`tf.data.Dataset` that shuffles anew in every epoch starts again with the first epoch's order: nothing saves that.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tools.chapters import ROOT
from vae_utils.architectures import dense_vae

pytestmark = [pytest.mark.robustness, pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")]

EPOCHS, BATCHES, PAUSE = 6, 6, 0.03
TRAIN = str(Path(__file__).parent / "train.py")


def start(folder, shuffle="in order", epochs=EPOCHS, pause=0.0):
    command = [sys.executable, TRAIN, str(folder), str(epochs), shuffle, str(pause)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    """The epochs that ran, the optimizer's steps, and the digest of the weights."""
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    *epochs, last = printed.splitlines()
    return [int(line.split()[1]) for line in epochs], int(last.split()[1]), last.split()[2]


def kill_in(folder, epoch, seconds, shuffle="in order"):
    """Start a training, and kill it that many seconds after that epoch has begun."""
    process = start(folder, shuffle, pause=PAUSE)
    for _ in range(epoch + 1):
        process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def state(folder):
    """What the backup says: the epoch it names, and the steps that its optimizer has taken."""
    metadata = folder / "training_metadata.json"
    if not metadata.exists():
        return 0, 0
    with h5py.File(folder / "latest.weights.h5") as file:
        return json.loads(metadata.read_text())["epoch"], int(file["optimizer/vars/0"][()])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    runs = {name: start(tmp_path_factory.mktemp("whole"), name) for name in ("in order", "shuffle")}
    return {name: finish(process) for name, process in runs.items()}


def test_killed_at_a_random_moment_and_resumed_bit_for_bit(uninterrupted, tmp_path, tried):
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    judged = 0
    for k in range(16):
        folder = tmp_path / str(k)
        killed_in, seconds = rng.randrange(1, EPOCHS - 1), rng.uniform(0, 1.5 * BATCHES * PAUSE)
        kill_in(folder, killed_in, seconds)
        try:
            epoch, steps = state(folder)
        except (OSError, KeyError, ValueError):  # killed while it wrote: the test after this one
            continue
        if steps != epoch * BATCHES:  # killed between the backup's two files: likewise
            continue
        assert epoch > 0, "an epoch had ended, and nothing was kept"
        epochs, steps, digest = finish(start(folder))
        assert epochs == list(range(epoch, EPOCHS)) and steps == EPOCHS * BATCHES
        assert digest == uninterrupted["in order"][2], f"seed {seed}: killed {seconds:.2f} s into epoch {killed_in}"
        judged += 1
        tried()
        if judged == 4:
            return
    pytest.fail(f"seed {seed}: of 16 kills, only {judged} fell outside the writing of a backup")


def test_a_backup_that_was_being_written_is_not_the_end(uninterrupted, tmp_path, tried):
    kill_in(tmp_path / "run", 3, 0.1)
    weights = tmp_path / "run" / "latest.weights.h5"
    assert state(tmp_path / "run")[0] >= 2
    weights.write_bytes(weights.read_bytes()[:5_000])
    assert finish(start(tmp_path / "run"))[2] == uninterrupted["in order"][2]
    tried()


def test_killed_and_resumed_with_shuffling(uninterrupted, tmp_path, tried):
    folder = tmp_path / "run"
    kill_in(folder, 3, 0.1, "shuffle")
    epoch, _ = state(folder)
    assert 0 < epoch < EPOCHS
    _, steps, digest = finish(start(folder, "shuffle"))
    assert (steps, digest) == uninterrupted["shuffle"][1:]
    assert digest != uninterrupted["in order"][2], "it was shuffled"
    tried()


def orders(make, epochs, initial_epoch):
    """The order of the images in each epoch of a training."""
    keras.utils.set_random_seed(1)
    vae = dense_vae((1, 1, 1), hidden=(2,))
    vae.compile("sgd", run_eagerly=True)
    seen = []
    loss = vae.compute_loss

    def watch(*args, **kwargs):
        seen.extend(np.ravel(args[0] if args else kwargs["x"]))
        return loss(*args, **kwargs)

    vae.compute_loss = watch
    x = (np.arange(32) / 32).astype("f").reshape(-1, 1, 1, 1)
    vae.fit(make(x), batch_size=None, epochs=epochs, initial_epoch=initial_epoch, verbose=0)
    return np.reshape(seen, (epochs - initial_epoch, 32)).tolist()


def test_an_array_has_one_order_and_a_data_set_begins_anew(tried):
    whole, resumed = orders(np.array, 3, 0), orders(np.array, 3, 1)
    assert whole[1:] == resumed and whole[0] == whole[1] != sorted(whole[0])

    def shuffled(x):
        return tf.data.Dataset.from_tensor_slices(x).shuffle(32, seed=2).batch(8)

    whole, resumed = orders(shuffled, 3, 0), orders(shuffled, 3, 1)
    assert resumed == whole[:2] != whole[1:], "Keras or TensorFlow now restores the order: say so among the promises"
    tried(2)


def test_without_the_noise_the_weights_would_differ(tmp_path, monkeypatch, tried):
    """The state of the noise is what makes a resumed training the same."""
    x = np.random.default_rng(0).random((32, 4, 4, 1)).astype("f")

    def run(resume):
        keras.utils.set_random_seed(1)
        vae = dense_vae((4, 4, 1), hidden=(4,))
        vae.compile("adam", jit_compile=False)
        vae.fit(x, epochs=2, shuffle=False, verbose=0)
        if resume:
            vae.save(tmp_path / "vae.keras")
            keras.utils.set_random_seed(1)
            vae = keras.saving.load_model(tmp_path / "vae.keras")
        vae.fit(x, epochs=2, shuffle=False, verbose=0)
        return vae.get_weights()

    whole, resumed = run(False), run(True)
    assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))
    monkeypatch.setattr("vae_utils.layers.Sampling.load_own_variables", lambda *_: None)
    assert not all(np.array_equal(a, b) for a, b in zip(whole, run(True), strict=True))
    tried()


class InterruptAt(keras.callbacks.Callback):
    """Interrupts the second time that a moment comes."""

    def __init__(self, moment):
        super().__init__()
        self.calls = 0
        setattr(self, moment, self.interrupt)

    def interrupt(self, step, logs=None):
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "moment", ["on_train_batch_begin", "on_train_batch_end", "on_epoch_begin", "on_epoch_end", "on_test_batch_end"]
)
@pytest.mark.parametrize("options", [{"jit_compile": False}, {"jit_compile": False, "steps_per_execution": 2}])
def test_ctrl_c_leaves_a_model_that_works(tmp_path, tried, moment, options):
    x = np.random.default_rng(0).random((80, 4, 4, 1)).astype("f")
    vae = dense_vae((4, 4, 1), hidden=(4,))
    vae.compile("adam", **options)
    steps = {"batch_size": 10, "epochs": 3, "validation_data": x[:40], "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        vae.fit(x, callbacks=[InterruptAt(moment)], **steps)
    assert all(np.isfinite(weight).all() for weight in vae.get_weights())
    assert vae.predict(x, verbose=0).shape == x.shape
    vae.save(tmp_path / "vae.keras")
    other = x[:20] / 2
    history = vae.fit(x, batch_size=10, epochs=1, validation_data=other, verbose=0).history
    assert history["val_loss"][-1] == pytest.approx(vae.evaluate(other, batch_size=10, verbose=0)[0], rel=1e-5)
    assert len(history["loss"]) == 1
    tried()


def test_an_interrupt_from_the_keyboard(tmp_path, tried):
    """The signal itself, as Jupyter's stop button sends it."""
    process = start(tmp_path / "run", pause=PAUSE)
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # When it arrives inside TensorFlow's C code, that may report it as a SystemError.
    assert ("KeyboardInterrupt" in errors or "SystemError" in errors) and process.returncode != 0
    assert finish(start(tmp_path / "run"))[1] == EPOCHS * BATCHES
    tried()


def test_a_second_fit_after_a_resumed_one_trains_all_its_epochs(tmp_path, tried):
    x = np.zeros((8, 4, 4, 1), "f")

    def build():
        vae = dense_vae((4, 4, 1), hidden=(4,))
        vae.compile("adam", jit_compile=False)
        return vae

    backup = {"callbacks": [keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)], "verbose": 0}
    build().fit(x, epochs=3, **backup)
    vae = build()
    assert len(vae.fit(x, epochs=5, **backup).history["loss"]) == 2
    assert len(vae.fit(x, epochs=4, verbose=0).history["loss"]) == 4
    tried()

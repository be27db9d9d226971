"""A short training that writes a backup after each epoch. Usage: train.py FOLDER EPOCHS SHUFFLE SECONDS_PER_BATCH

It prints the epochs it begins, and at the end the digest of its weights and of its optimizer's.
"""

import hashlib
import signal
import sys
import time

import keras
import numpy as np

from vae_utils.architectures import dense_vae


class Slow(keras.callbacks.Callback):
    """Takes its time, so that there is a moment in which to be killed."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def on_epoch_begin(self, epoch, logs=None):
        print("epoch", epoch, flush=True)

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(self.seconds)


def main(folder, epochs, shuffle, seconds):
    # A shell's background jobs ignore Ctrl-C, and hand that on to all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(0).random((96, 4, 4, 1)).astype("float32")
    vae = dense_vae((4, 4, 1), hidden=(8,))
    vae.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    backup = keras.callbacks.BackupAndRestore(folder, double_checkpoint=True, delete_checkpoint=False)
    vae.fit(
        x,
        batch_size=16,
        epochs=int(epochs),
        shuffle=shuffle == "shuffle",
        callbacks=[backup, Slow(float(seconds))],
        verbose=0,
    )
    values = [*vae.get_weights(), *(keras.ops.convert_to_numpy(v) for v in vae.optimizer.variables)]
    print("done", int(vae.optimizer.iterations), hashlib.sha256(b"".join(v.tobytes() for v in values)).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])

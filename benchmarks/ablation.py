"""Trainings too long for chapter 04: other recipes, other starts, the KL averaged, 20 latent dimensions.

Usage: python -m benchmarks.ablation. What ablation.json holds already is kept, so that a stopped run goes on.
"""

import json
import time

import keras
from tqdm import tqdm

from benchmarks import base, table
from benchmarks.base import QUICK
from benchmarks.training import CONV, DENSE, EPOCH
from vae_utils import evaluation
from vae_utils.architectures import conv_vae, dense_vae

RECORD = base.ROOT / "build" / "ablation.json" if QUICK else base.FOLDER / "ablation.json"


def split():
    x = base.images(EPOCH)
    held_out = len(x) // 12
    return x[:-held_out], x[-held_out:]


def conv(starts, epochs, beta=1.0, latent_dim=2, batch_size=64, peak=4e-3):
    """Train by chapter 04's recipe: an epoch from each start, then on from the one with the best validation loss."""
    x, x_val = split()
    steps, warmup = epochs * -(-len(x) // batch_size), 400

    def begin(seed):
        keras.utils.set_random_seed(seed)
        vae = conv_vae(latent_dim=latent_dim)
        vae.beta = beta
        rate = keras.optimizers.schedules.CosineDecay(0.0, steps - warmup, warmup_target=peak, warmup_steps=warmup)
        vae.compile(keras.optimizers.Adam(rate), **CONV)
        vae.fit(x, batch_size=batch_size, verbose=0)
        return vae, -evaluation.elbo(vae, x_val).mean()

    vae, _ = min((begin(seed) for seed in starts), key=lambda start: start[1])
    vae.fit(x, batch_size=batch_size, epochs=epochs, initial_epoch=1, verbose=0)
    return vae


def short(batch_size, peak):
    what = f"3 epochs of chapter 04's model, batches of {batch_size}, learning rate up to {peak:g}"
    return what, ((0,),), lambda starts: conv(starts, 3, batch_size=batch_size, peak=peak)


def dense(starts, epochs, latent_dim):
    x, _ = split()
    keras.utils.set_random_seed(starts[0])
    vae = dense_vae(latent_dim=latent_dim)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * -(-len(x) // 200))
    vae.compile(keras.optimizers.Adam(rate), **DENSE)
    vae.fit(x, batch_size=200, epochs=epochs, verbose=0)
    return vae


#: name: (what a reader is told, the starts of each run, the training)
RUNS = {
    "chapter-04": (
        "chapter 04 with other seeds: 10 epochs from the best of three starts",
        ((3, 4, 5), (6, 7, 8)),
        lambda starts: conv(starts, 10),
    ),
    "averaged": ("chapter 04 with the KL averaged, one start", ((0,),), lambda starts: conv(starts, 10, beta=0.5)),
    "conv-20d": (
        "20 latent dimensions, convolutional, 3 epochs",
        ((0,), (1,), (2,)),
        lambda s: conv(s, 3, latent_dim=20),
    ),
    "dense-20d": ("20 latent dimensions, dense, 30 epochs", ((0,), (1,), (2,)), lambda s: dense(s, 30, latent_dim=20)),
    "batch-128": short(128, 2e-3),
    "batch-64": short(64, 2e-3),
    "batch-64-fast": short(64, 4e-3),
    "batch-32": short(32, 2e-3),
}


def measure(starts, training):
    begin = time.process_time()
    vae = training(starts)
    seconds = time.process_time() - begin
    losses = {
        name: round(float(-evaluation.elbo(vae, x, num_samples=10).mean()), 2)
        for name, x in (("validation", split()[1]), ("test", base.digits().x_test))
    }
    return {"starts": list(starts), **losses, "cpu_seconds": round(seconds)}


def main():
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    RECORD.parent.mkdir(exist_ok=True)
    todo = [(name, starts) for name, (_, runs, _) in RUNS.items() for starts in runs]
    for name, starts in (bar := tqdm(todo)):
        bar.set_description(f"{name} {starts}")
        what, _, training = RUNS[name]
        done = record.setdefault(name, {"what": what, "runs": []})["runs"]
        if list(starts) not in [run["starts"] for run in done]:
            done.append(measure(starts, training))
            RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
            keras.utils.clear_session()
    print(table.recipes(record))


if __name__ == "__main__":
    main()

"""The shipped weights: the files of the manifest, and the numbers that it claims."""

import hashlib
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import vae_utils.models
from vae_utils import evaluation
from vae_utils.models import VAE, load_pretrained

FOLDER = Path(vae_utils.models.__file__).parent / "weights"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text("utf-8"))


def test_manifest_and_files_match():
    assert {path.name for path in FOLDER.iterdir()} == {"manifest.json"} | {f"{name}.weights.h5" for name in MANIFEST}
    for name, entry in MANIFEST.items():
        assert hashlib.sha256((FOLDER / f"{name}.weights.h5").read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("name", MANIFEST)
def test_loads(name):
    vae = load_pretrained(name)
    assert isinstance(vae, VAE) and vae.count_params() == MANIFEST[name]["parameters"]
    assert vae.sample(2, seed=0).shape == (2, 28, 28, 1)


@pytest.mark.mnist
@pytest.mark.parametrize("name", MANIFEST)
def test_reaches_what_the_manifest_says(name, mnist):
    vae = load_pretrained(name)
    first, other = (-evaluation.elbo(vae, mnist.x_test, num_samples=10, seed=seed) for seed in (0, 1))
    # Four digits where the noise is the manifest's; a backend with other noise for the same seed: 4 standard errors.
    four_errors = 4 * np.std(first - other, ddof=1) / np.sqrt(len(first))
    tolerance = 0.01 if keras.backend.backend() == "tensorflow" else four_errors
    assert first.mean() == pytest.approx(MANIFEST[name]["test_negative_elbo"], abs=tolerance)
    assert four_errors < 0.1


def test_unknown_names_and_other_files_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="Received: 'conv-3d'"):
        load_pretrained("conv-3d")
    damaged = {name: {**entry, "sha256": "0" * 64} for name, entry in MANIFEST.items()}
    monkeypatch.setattr(json, "loads", lambda text: damaged)
    with pytest.raises(ValueError, match="not the file in the manifest"):
        load_pretrained(next(iter(MANIFEST)))

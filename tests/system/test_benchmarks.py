"""The benchmarks run, refuse a pair that does less, and write what the table reads. No time is tested."""

import json
import re
import subprocess
import sys

import keras
import nbformat
import numpy as np
import pytest

from benchmarks import ablation, arithmetic, base, footprint, likelihood, recipes, scaling, table, training
from benchmarks.__main__ import rows_named
from tools.chapters import ROOT, chapters
from vae_utils.architectures import conv_vae, dense_vae

KEYS = {"name", "ours", "theirs", "unit", "ratio", "spread", "target", "met"}
NAMES = [
    "dense-epoch",
    "conv-epoch",
    "conv-time-to-elbo",
    "manifold",
    "conv-vs-torch",
    "conv-vs-jax",
    "dense-flops",
    "conv-flops",
    "log-likelihood",
    "import",
    "memory",
]


@pytest.fixture(autouse=True)
def small(monkeypatch, digits):
    """The digits that need no network, few of them, and two rounds."""
    monkeypatch.setattr(base, "digits", lambda: digits)
    monkeypatch.setattr(training, "digits", lambda: digits)
    for module in (training, likelihood):
        monkeypatch.setattr(module, "images", lambda n: digits.x_train[:256])
    monkeypatch.setattr(base, "ROUNDS", 2)


def check_row(row):
    assert set(row) >= KEYS
    assert row["name"] in base.ROWS
    numbers = [row["ours"], row["theirs"], row["ratio"], *(row["spread"] or [])]
    assert all(number is None or (np.isfinite(number) and number > 0) for number in numbers)
    if row["ratio"] is not None:
        assert row["spread"][0] <= row["ratio"] <= row["spread"][1]


def test_every_row_of_the_series_is_there():
    assert set(NAMES) <= set(base.ROWS)


def test_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians():
    result = base.summary([1.0, 2.0, 4.0], [8.0, 2.0, 12.0], target=3)  # ratios 8, 1, 3
    assert (result["ratio"], result["spread"], result["met"]) == (3, [1, 8], True)
    assert (result["ours"], result["theirs"]) == (2, 8)
    assert base.summary([1.0], [2.0], target=2.5)["met"] is False
    assert base.summary([1.0], [4.0], target=0.5, of_peak=True)["ratio"] == 0.25
    assert [base.summary([value], None, 0.2, at_most=True)["met"] for value in (0.1, 0.3)] == [True, False]
    assert base.summary([1.0], [2.0], target=None)["met"] is None


def test_rounds_alternate_after_a_warm_up_and_a_check():
    calls = []
    ours, theirs = base.interleave(lambda: calls.append("A"), lambda: calls.append("B") or 7.0, rounds=3)
    assert "".join(calls) == "AB" * 4 and len(ours) == len(theirs) == 3
    log = []
    base.interleave(lambda: log.append("A"), lambda: log.append("B"), lambda: log.append("check"), rounds=1)
    assert log == ["A", "B", "check", "A", "B"]


def test_helpers_own_seconds_count():
    _, theirs = base.interleave(lambda: None, lambda: 7.0, rounds=2)
    assert theirs == [7.0, 7.0]


def test_cheap_row_runs(monkeypatch):
    monkeypatch.setattr(likelihood, "QUICK", True)
    row = base.ROWS["manifold"]()
    check_row(row)
    assert row["ratio"] > 1  # not a time: one call against nine hundred


@pytest.mark.parametrize("make, build", [(recipes.blog_dense, dense_vae), (recipes.keras_io_conv, conv_vae)])
def test_recipes_have_the_published_parameters(make, build):
    assert sum(int(np.prod(w.shape)) for w in make().trainable_variables) == build().count_params()


def dense_pair(rate=1e-3):
    return training.pair(dense_vae, recipes.blog_dense(), keras.optimizers.RMSprop(rate), {}, 256, 64, flat=True)


def test_pair_takes_turns_over_all_its_digits():
    seconds, note = dense_pair()
    assert [len(values) for values in seconds] == [2, 2]
    assert note == "measured on 256 digits, scaled to 60,000"


def test_epoch_counts_up_to_its_last_step_and_the_wait_after_it_apart(monkeypatch):
    class Model:
        def fit(self, x, batch_size, epochs, verbose, callbacks):
            [callback] = callbacks
            for step in range(2 * epochs):
                callback.on_train_batch_end(step)

    waits, clock = [], iter([10.0, 11.0, 12.0, 17.0, 20.0, 21.0, 22.0, 23.0, 24.0, 24.5])
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    assert training.trainer(Model(), None, 128, waits=waits)() == 2
    assert training.trainer(Model(), None, 128, epochs=2, waits=waits)() == 2
    assert waits == [5, 0.5]


def test_what_comes_by_chance_has_no_ratio(monkeypatch):
    def pair(*args, waits, n, **kwargs):
        for values, wait in zip(waits, ([9.0, 0.1, 0.2], [9.0, 0.1, 0.9]), strict=True):
            values.extend(wait)
        return ([60.0, 30.0], [60.0, 30.0]), ""  # seconds of 60,000 digits, and there are 256

    monkeypatch.setattr(training, "pair", pair)
    row = base.ROWS["conv-wait"]()
    check_row(row)
    assert (row["ours"], row["theirs"], row["ratio"], row["met"]) == (0.2, 0.9, None, None)
    assert row["note"].endswith("ours 0.33 0.36; Keras' 0.36 1.03")


def test_pair_that_takes_fewer_steps_is_refused(monkeypatch):
    full = training.trainer

    def half(model, x, batch_size, **kwargs):
        return full(model, x[: len(x) // 2] if hasattr(model, "encoder") else x, batch_size, **kwargs)

    monkeypatch.setattr(training, "trainer", half)
    with pytest.raises(AssertionError, match="steps"):
        dense_pair()


def test_pair_whose_steps_do_less_is_refused():
    with pytest.raises(AssertionError, match="ELBO"):
        dense_pair(rate=1e-9)


@pytest.mark.parametrize(
    "name, without, changed",
    [
        ("dense-steps", {"jit_compile": False, "steps_per_execution": 1}, {"steps_per_execution": 50}),
        ("dense-xla", {"jit_compile": False, "steps_per_execution": 50}, {"jit_compile": True}),
        ("conv-xla", {"jit_compile": False, "steps_per_execution": 10}, {"jit_compile": True}),
    ],
)
def test_a_setting_is_measured_beside_the_same_training_without_it(monkeypatch, name, without, changed):
    def pair(build, theirs, optimizer, fast, n, batch_size):
        assert {key: getattr(theirs, key) for key in without} == without
        assert {**without, **changed} == {**without, **fast}
        return ([1.0], [2.0]), ""

    monkeypatch.setattr(training, "pair", pair)
    for settings, steps in ((training.DENSE, 50), (training.CONV, 10)):  # also where the tests run in quick mode
        monkeypatch.setitem(settings, "steps_per_execution", steps)
    check_row(base.ROWS[name]())


def test_flops_are_as_counted_by_hand():
    dense = 784 * 256 + 256 * 2 * 2 + 2 * 256 + 256 * 784
    assert training.training_flops(dense_vae()) == 3 * 2 * dense
    conv = 14 * 14 * 9 * 32 + 7 * 7 * 9 * 32 * 64 + 3136 * 16 + 16 * 4  # the encoder's products
    conv += 2 * 3136 + 7 * 7 * 9 * 64 * 64 + 14 * 14 * 9 * 64 * 32 + 28 * 28 * 9 * 32  # the decoder's
    assert training.training_flops(conv_vae()) == 3 * 2 * conv


@pytest.mark.parametrize("build, count", [(dense_vae, 5), (conv_vae, 9)])
def test_arithmetic_does_the_layers_products_and_no_more(build, count):
    model = build()
    parts = [*arithmetic.with_kernels(model.encoder), *arithmetic.with_kernels(model.decoder)]
    assert len(parts) == count
    for layer in parts:  # biases are zero before training
        x = np.random.default_rng(0).standard_normal((3, *layer.input.shape[1:])).astype("float32")
        np.testing.assert_allclose(layer.activation(arithmetic.product(layer, x)), layer(x), atol=1e-5)


def test_arithmetic_is_a_part_of_the_whole():
    note = arithmetic.were_all_else_free(2.0, 9.0, "products")
    assert "take 2 s" in note and note.endswith("4.5")


def test_missing_package_gives_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    row = base.ROWS["conv-vs-torch"]()
    assert set(row) >= KEYS and row["ours"] is row["met"] is None
    assert "torch is not installed" in row["note"]


def test_trainings_that_mostly_stop_short_give_a_row_that_says_so(monkeypatch, tmp_path):
    path = tmp_path / "record.json"
    runs = [{"reached": True, "val_loss": [160.0, 150.0]}, *2 * [{"reached": False, "val_loss": [160.0, 155.0]}]]
    path.write_text(json.dumps({"runs": runs}))
    monkeypatch.setattr(training, "RECORD", path)
    row = base.ROWS["conv-time-to-elbo"]()
    assert row["met"] is None and "2 of 3 recorded runs stopped short" in row["note"]


def test_memory_is_read_from_the_notebooks(monkeypatch, tmp_path):
    for name, peak in (("01_a", 500), ("02_b", 2_000)):
        notebook = nbformat.v4.new_notebook(metadata={"vae_utils": {"peak_memory_mb": peak}})
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    monkeypatch.setattr(footprint, "chapters", lambda: chapters(folder=tmp_path))
    row = base.ROWS["memory"]()
    assert (row["ours"], row["met"]) == (2.0, False)
    assert "12 learners" in row["note"] and "01: 0.50 GB" in row["note"]


def test_what_a_training_leaves_is_measured_beside_keras_own_fit(monkeypatch):
    monkeypatch.setattr(footprint, "QUICK", True)
    monkeypatch.setattr(footprint, "run_python", lambda code: 16.0 if "keras.Model.fit(vae" in code else 2.0)
    row = base.ROWS["leftover"]()
    check_row(row)
    assert row["ratio"] == 8 and "2 models" in row["note"]


def test_exponent_is_the_slope_in_the_log_log_plane():
    x = np.array([1, 2, 4, 8])
    assert scaling.exponent(x, 3 * x**1.5) == pytest.approx(1.5)


RESULTS = {
    "machine": {
        "cpu": "A CPU",
        "cores": 2,
        "threads": 2,
        "system": "Linux",
        "python": "3.11",
        "versions": {"keras": "3.13"},
        "data": "optical-digits",
        "quick": False,
    },
    "rows": [
        {"name": "a", "what": "w", "against": "x", "note": "half"}
        | {"ours": 0.5, "theirs": 2.0, "unit": "s", "ratio": 4.0, "spread": [3.5, 4.5], "target": 4, "met": True},
        {"name": "b", "what": "w", "against": "", "note": ""}
        | {"ours": None, "theirs": None, "unit": "s", "ratio": None, "spread": None, "target": 0.2, "met": None},
    ],
}


def test_table_shows_rows_notes_machine_and_stand_in_data():
    lines = table.markdown(RESULTS).splitlines()
    assert lines[2] == "| w (`a`) | x | 0.5 s | 2 s | 4.00 (3.50 to 4.50) | ≥ 4, reached |"
    assert lines[3] == "| w (`b`) | – | – | – | – | ≤ 0.2 s |"
    assert "- `a`: half." in lines
    assert "A CPU, 2 cores" in lines[-1] and "not MNIST" in lines[-1]
    assert all(word in table.text(RESULTS) for word in ("3.50 to 4.50", "half", "not MNIST"))


def test_recipes_are_listed_run_by_run_with_their_medians():
    runs = [{"validation": a, "test": a + 1, "cpu_seconds": 10 * a} for a in (3.0, 1.0, 5.0)]
    lines = table.recipes({"a": {"what": "w", "runs": runs}}).splitlines()
    assert lines[2] == "| w | 3.00 / 1.00 / 5.00 | 3.00 | 4.00 | 30 |"


def test_committed_trainings_are_those_of_the_script():
    record = json.loads((base.FOLDER / "ablation.json").read_text("utf-8"))
    assert list(record) == list(ablation.RUNS)
    for name, (what, starts, _) in ablation.RUNS.items():
        assert record[name]["what"] == what
        assert [tuple(run["starts"]) for run in record[name]["runs"]] == list(starts)


def test_unknown_row_is_refused():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and re.search("No row nonsense.*dense-epoch", done.stderr)


def test_the_beginning_of_a_name_means_all_rows_that_have_it():
    assert rows_named("dense-epoch") == ["dense-epoch"] and rows_named("scaling") == ["scaling"]
    dense = rows_named("dense")
    assert len(dense) >= 2 and all(name.startswith("dense-") for name in dense)


def test_committed_results_hold_every_row():
    path = base.FOLDER / "results.json"
    if not path.exists():
        pytest.skip("not measured yet")
    results = json.loads(path.read_text("utf-8"))
    assert set(NAMES) <= {row["name"] for row in results["rows"]}
    for row in results["rows"]:
        check_row(row)
        # A mark that is missed comes with what the arithmetic, or Keras, takes without anything of ours.
        assert row["met"] is not False or re.search(r"alone (take )?\d|nothing around them", row["note"])
    machine = results["machine"]
    assert not machine["quick"] and machine["cores"] >= 1 and machine["threads"] >= 1 and machine["cpu"]
    assert {"tensorflow", "keras", "numpy"} <= set(machine["versions"])
    assert len(results["scaling"]) == 5
    table.markdown(results)

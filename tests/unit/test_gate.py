"""Data in every form: the same numbers take the same steps, and what the model doesn't take is refused everywhere."""

import contextlib
import gc
import time

import keras
import ml_dtypes
import numpy as np
import pytest

from vae_utils import dense_vae

BACKEND = keras.backend.backend()
SIZE = 16
SHAPE = (8, 8, 1)

rng = np.random.default_rng(0)
#: Sixteenths, which every type of float holds exactly. The last batch is smaller than the others.
IMAGES = (rng.integers(0, 17, (40, *SHAPE)) / 16).astype("float32")
LABELS = np.arange(40) % 10
WEIGHTS = rng.integers(0, 4, 40).astype("float32")
HELD_OUT = 20  # as many of them serve as validation data


class Batches(keras.utils.PyDataset):
    def __init__(self, parts, **options):
        super().__init__(**options)
        self.parts, self.calls = parts, []
        self.at_once = self.most_at_once = 0

    @property
    def num_batches(self):
        return -(-len(keras.tree.flatten(self.parts)[0]) // SIZE)

    def __getitem__(self, index):
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        if self.workers > 1:
            time.sleep(0.1)
        self.at_once -= 1
        rows = slice(index * SIZE, (index + 1) * SIZE)
        return keras.tree.map_structure(lambda part: part[rows], self.parts)

    def on_epoch_begin(self):
        self.calls.append("begin")

    def on_epoch_end(self):
        self.calls.append("end")


class EndlessBatches(Batches):
    num_batches = None

    def __getitem__(self, index):
        return super().__getitem__(index % super().num_batches)


def tf_data(parts):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(parts).batch(SIZE)


def generator(parts):
    return (batch for batch in Batches(parts))


def data_loader(parts, **options):
    torch = pytest.importorskip("torch")
    if any(part.dtype == ml_dtypes.bfloat16 for part in keras.tree.flatten(parts)):
        pytest.skip("PyTorch makes no tensor of such an array")
    n = len(keras.tree.flatten(parts)[0])
    examples = [keras.tree.map_structure(lambda part, k=k: part[k], parts) for k in range(n)]
    return torch.utils.data.DataLoader(examples, SIZE, **options)


#: Make batches of `(x,)`, `(x, y)` or `(x, y, sample_weight)`.
DATA_SETS = {"tf.data": tf_data, "PyDataset": Batches, "generator": generator, "DataLoader": data_loader}
in_every_data_set = pytest.mark.parametrize("make", DATA_SETS.values(), ids=DATA_SETS)
in_every_form = pytest.mark.parametrize("form", ["array", *DATA_SETS])


def new_vae(**options):
    keras.utils.set_random_seed(0)
    vae = dense_vae(SHAPE, hidden=(8,), **options)
    vae.compile(keras.optimizers.SGD(1e-2), run_eagerly=True)
    return vae


def outcome(vae, form, *parts):
    """All that a model makes of images, in training, evaluation, prediction and encoding."""
    held_out = keras.tree.map_structure(lambda part: part[:HELD_OUT], parts)

    def given(parts):
        return tuple(parts) if form == "array" else DATA_SETS[form](tuple(parts))

    def call(method, parts, **options):
        if form == "array":
            names = ("x", "y", "sample_weight")
            return method(**dict(zip(names, parts, strict=False)), batch_size=SIZE, verbose=0, **options)
        return method(given(parts), verbose=0, **options)

    history = call(vae.fit, parts, shuffle=False, validation_data=given(held_out)).history
    images = held_out[0] if form == "array" else given(held_out)
    mean, log_var = vae.encode(images, batch_size=SIZE)
    return {
        **{name: values[0] for name, values in history.items()},
        "evaluate": call(vae.evaluate, held_out),
        "predict": call(vae.predict, held_out[:1]),
        "z_mean": mean,
        "z_log_var": log_var,
        **{f"weights {k}": weights for k, weights in enumerate(vae.get_weights())},
    }


def assert_all_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        a, b = (np.asarray(each[name], "float64") for each in (found, expected))
        np.testing.assert_array_equal(a, b, name)


@contextlib.contextmanager
def policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def of_array():
    """What an array of 32-bit floats gives, computed once for each of them."""
    known = {}

    def find(images, name="float32"):
        key = (name, images.tobytes())
        if key not in known:
            known[key] = outcome(new_vae(), "array", images)
        return known[key]

    return find


@in_every_form
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "uint8"])
def test_the_same_numbers_take_the_same_steps_in_every_form_and_type(of_array, form, dtype):
    images = IMAGES if dtype != "uint8" else (IMAGES > 0.5).astype("float32")
    given = images.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert_all_equal(outcome(new_vae(), form, given), of_array(images))


@pytest.mark.parametrize("form", ["array", "tf.data", "PyDataset"])
@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_the_same_numbers_take_the_same_steps_under_every_policy(of_array, form, name):
    with policy(name):
        found, expected = outcome(new_vae(), form, IMAGES.astype("float64")), of_array(IMAGES, name)
    assert_all_equal(found, expected)
    assert found["loss"] != of_array(IMAGES)["loss"]  # the policy has had an effect


@pytest.fixture(scope="module")
def weighted():
    vae, held_out = new_vae(), slice(HELD_OUT)
    options = {"batch_size": SIZE, "verbose": 0}
    return {
        "loss": vae.fit(IMAGES, sample_weight=WEIGHTS, shuffle=False, **options).history["loss"][0],
        "evaluate": vae.evaluate(IMAGES[held_out], sample_weight=WEIGHTS[held_out], **options),
    }


@in_every_form
def test_weights_count_the_same_in_every_form(of_array, weighted, form):
    targets = IMAGES if form == "array" else LABELS
    found = outcome(new_vae(), form, IMAGES, targets, WEIGHTS)
    assert {name: found[name] for name in weighted} == weighted
    assert found["loss"] != of_array(IMAGES)["loss"]


@pytest.fixture(scope="module")
def of_array_with_condition():
    return outcome(new_vae(num_classes=10), "array", (IMAGES, LABELS.astype("int32")))


@in_every_form
def test_a_condition_takes_the_same_steps_in_every_form(of_array_with_condition, form):
    inputs = (IMAGES.astype("float64"), LABELS.astype("int32"))
    found = outcome(new_vae(num_classes=10), form, inputs, IMAGES)  # the images are their own target
    assert_all_equal(found, of_array_with_condition)


@in_every_data_set
@pytest.mark.parametrize("parts", [IMAGES, (IMAGES, LABELS)], ids=["images alone", "labels"])
def test_labels_in_a_data_set_and_batches_without_a_tuple_change_nothing(of_array, make, parts):
    history = new_vae().fit(make(parts), shuffle=False, verbose=0).history
    assert {name: values[0] for name, values in history.items()}.items() <= of_array(IMAGES).items()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_single_batches_of_every_type(dtype):
    batch, weights = IMAGES[:SIZE], WEIGHTS[:SIZE]
    given = batch.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    found, expected = new_vae(), new_vae()
    for options in ({}, {"sample_weight": weights}):
        found.train_on_batch(given, **options)
        expected.fit(batch, batch_size=SIZE, shuffle=False, verbose=0, **options)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found.predict_on_batch(given), expected.predict(batch, verbose=0))
    found.reset_metrics()
    np.testing.assert_allclose(
        found.test_on_batch(given, return_dict=True)["kl_loss"],
        expected.evaluate(batch, verbose=0, return_dict=True)["kl_loss"],
    )


def last_scores(vae, validation_data):
    history = vae.fit(IMAGES, batch_size=SIZE, validation_data=validation_data, shuffle=False, verbose=0).history
    return [history[name][0] for name in ("val_loss", "val_reconstruction_loss", "val_kl_loss")]


def test_weights_of_validation_examples_count_with_and_without_targets():
    held_out, zeros, weights = IMAGES[:HELD_OUT], np.zeros(HELD_OUT), WEIGHTS[:HELD_OUT]
    assert last_scores(new_vae(), (held_out, None, zeros)) == [0, 0, 0]
    assert last_scores(new_vae(), (held_out, held_out, zeros)) == [0, 0, 0]
    expected = last_scores(new_vae(), (held_out, None, weights))
    assert last_scores(new_vae(), (held_out, held_out, weights)) == expected
    assert last_scores(new_vae(), tf_data((held_out, LABELS[:HELD_OUT], weights))) == expected
    vae = new_vae()
    last_scores(vae, held_out)
    assert vae.evaluate(held_out, batch_size=SIZE, sample_weight=weights, verbose=0) == expected


def test_validation_data_with_a_condition():
    inputs, weights = (IMAGES[:HELD_OUT], LABELS[:HELD_OUT]), WEIGHTS[:HELD_OUT]
    labels = LABELS.astype("int32")

    def scores(validation_data):
        vae = new_vae(num_classes=10)
        found = vae.fit((IMAGES, labels), batch_size=SIZE, validation_data=validation_data, shuffle=False, verbose=0)
        return found.history["val_loss"]

    unweighted = scores((inputs,))
    assert scores((list(inputs), inputs[0])) == unweighted
    assert scores((inputs, None, weights)) == scores((inputs, inputs[0], weights)) != unweighted


def with_nans(x):
    x = x.copy()
    x.flat[:3] = np.nan
    return x


#: What the second batch holds, and what the message says. The third is worse, and is not to be named.
FAULTS = {
    "range": (lambda x: 2 * x - 1, r"Pixels must lie in \[0, 1\]\. Received: values from -1 to 1\.$"),
    "bytes": (lambda x: x * 255, r"values from 0 to 255\. Divide by 255 first\.$"),
    "NaN": (with_nans, r"3 values that are NaN\.$"),
}


def spoilt(fault):
    spoil, message = FAULTS[fault]
    images = IMAGES.copy()
    images[SIZE, 0, :2, 0] = 0, 1
    images[SIZE : 2 * SIZE] = spoil(images[SIZE : 2 * SIZE])
    images[2 * SIZE :] = 900
    return images, message


class CountSteps(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1


WAYS_IN = {
    "fit": lambda vae, data: vae.fit(data, shuffle=False, verbose=0),
    "validation": lambda vae, data: vae.fit(IMAGES[:SIZE], validation_data=data, verbose=0),
    "evaluate": lambda vae, data: vae.evaluate(data, verbose=0),
    "predict": lambda vae, data: vae.predict(data, verbose=0),
    "encode": lambda vae, data: vae.encode(data),
}


@in_every_data_set
@pytest.mark.parametrize(
    ("fault", "way_in"), [*(("range", way_in) for way_in in WAYS_IN), ("bytes", "fit"), ("NaN", "fit")]
)
def test_the_first_bad_batch_of_a_data_set_is_named_by_its_numbers(make, fault, way_in):
    images, message = spoilt(fault)
    with pytest.raises(ValueError, match=message):
        WAYS_IN[way_in](new_vae(), make((images,)))


@in_every_data_set
def test_a_training_stops_at_the_first_bad_batch(make):
    vae, count = new_vae(), CountSteps()
    with pytest.raises(ValueError, match="values from -1 to 1"):
        vae.fit(make((spoilt("range")[0],)), shuffle=False, callbacks=[count], verbose=0)
    assert count.steps <= 1


@in_every_data_set
@pytest.mark.parametrize("way_in", ["fit", "encode"])
def test_images_of_another_shape_in_a_data_set_are_named(make, way_in):
    with pytest.raises(ValueError, match=r"shape \(n, 8, 8, 1\), n ≥ 1\. Received: \(16, 7, 7, 1\)$"):
        WAYS_IN[way_in](new_vae(), make((IMAGES[:, 1:, 1:],)))


@pytest.mark.parametrize("way_in", [name for name in WAYS_IN if name != "encode"])
def test_what_is_no_data_set_for_keras_is_refused(way_in):
    with pytest.raises(ValueError, match=r"A data set must be .* Received: a map$"):
        WAYS_IN[way_in](new_vae(), map(np.copy, [IMAGES[:SIZE]]))


def test_bad_images_are_named_in_a_single_batch():
    vae, (images, _) = new_vae(), spoilt("range")
    batch = images[SIZE : 2 * SIZE]
    for call in (vae.train_on_batch, vae.test_on_batch, vae.predict_on_batch):
        with pytest.raises(ValueError, match="values from -1 to 1"):
            call(batch)


def test_an_error_of_the_users_stays_the_users():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        new_vae().fit(tf_data((spoilt("range")[0],)), callbacks=[Stop()], verbose=0)


@in_every_data_set
def test_a_data_set_of_dictionaries_is_refused_by_its_keys(make):
    data = make({"image": IMAGES, "label": LABELS})
    with pytest.raises(ValueError, match=r"one array of images.*dict with \['image', 'label'\]"):
        new_vae().fit(data, verbose=0)
    with pytest.raises(ValueError, match=r"one array of images.*dict with \['image'\]"):
        new_vae().evaluate(make(({"image": IMAGES}, LABELS)), verbose=0)


@in_every_form
@pytest.mark.parametrize("with_condition", [False, True])
def test_targets_that_are_not_the_images_are_refused_in_every_form(form, with_condition):
    noisy = np.clip(IMAGES + 0.0625, 0, 1)
    vae = new_vae(num_classes=10 if with_condition else None)
    x = (noisy, LABELS.astype("int32")) if with_condition else noisy
    for method in (vae.fit, vae.evaluate):
        with pytest.raises(ValueError, match="`y` means nothing here"):
            method(x, IMAGES, verbose=0) if form == "array" else method(DATA_SETS[form]((x, IMAGES)), verbose=0)


def test_targets_of_another_structure_in_a_data_set_pass():
    new_vae().fit(tf_data((IMAGES, (LABELS, LABELS))), verbose=0)


@in_every_form
@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_weights_of_examples_must_be_numbers_in_every_form(form, bad):
    weights = WEIGHTS.copy()
    weights[SIZE + 1] = bad
    vae = new_vae()
    with pytest.raises(ValueError, match=r"`sample_weight` must hold .* finite values, 0 or more"):
        if form == "array":
            vae.fit(IMAGES, sample_weight=weights, verbose=0)
        else:
            vae.fit(DATA_SETS[form]((IMAGES, LABELS, weights)), verbose=0)


def test_labels_beside_arrays_need_a_use():
    for method in (new_vae().fit, new_vae().evaluate, new_vae().train_on_batch, new_vae().test_on_batch):
        with pytest.raises(ValueError, match="`y` means nothing here"):
            method(IMAGES, LABELS)
    with pytest.raises(ValueError, match=r"target for each of the 40 images\. Received: \[39\]"):
        new_vae().fit(IMAGES, LABELS[1:], verbose=0)

    weighted, by_hand = new_vae(), new_vae()
    weighted.fit(IMAGES, LABELS, class_weight={k: k / 10 for k in range(10)}, shuffle=False, verbose=0)
    by_hand.fit(IMAGES, sample_weight=LABELS / 10, shuffle=False, verbose=0)
    for a, b in zip(weighted.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_targets_that_metrics_use_may_be_anything():
    vae, means = new_vae(), np.ones((40, 2), "float32")
    vae.compile("sgd", metrics={"z_mean": "mse"}, run_eagerly=True)
    targets = {"z_mean": means, "z_log_var": means, "parameters": IMAGES}
    scores = vae.evaluate(IMAGES, targets, verbose=0, return_dict=True)
    expected = np.mean((vae.encode(IMAGES)[0] - 1) ** 2)
    np.testing.assert_allclose(scores["z_mean_mse"], expected, rtol=1e-5)


def test_the_hooks_of_a_py_dataset_are_called_as_keras_calls_them():
    plain = keras.Sequential([keras.Input(SHAPE), keras.layers.Dense(1)])
    plain.compile("sgd", "mse", run_eagerly=True)
    given, expected = Batches((IMAGES,)), Batches((IMAGES, IMAGES))
    for model, batches in ((new_vae(), given), (plain, expected)):
        model.fit(batches, validation_data=batches, epochs=2, verbose=0)
        model.evaluate(batches, verbose=0)
    assert given.calls == expected.calls and {*given.calls} == {"begin", "end"}


def test_the_users_data_set_is_left_as_it_was():
    batches, data = Batches((IMAGES,)), tf_data((IMAGES.astype("float64"), LABELS))
    before = {**vars(batches)}
    vae = new_vae()
    for each in (batches, data):
        vae.fit(each, validation_data=each, verbose=0)
    assert {**vars(batches), "calls": 0, "most_at_once": 0} == {**before, "calls": 0}
    assert not vars(data).keys() & {"is_checked", "arrays"}
    assert next(iter(data))[0].dtype == "float64"


def test_the_users_data_loader_is_left_as_it_was():
    loader = data_loader((IMAGES.astype("float64"), LABELS))
    before = {**vars(loader)}
    new_vae().fit(loader, verbose=0)
    assert vars(loader) == before
    assert str(next(iter(loader))[0].dtype) == "torch.float64"


def test_a_data_loader_with_processes_of_its_own():
    vae = new_vae()
    vae.fit(data_loader((IMAGES,), num_workers=1), verbose=0)
    with pytest.raises(ValueError, match=r"^Pixels must .*values from -1 to 1\.$"):
        vae.fit(data_loader((spoilt("range")[0],), num_workers=1), verbose=0)


def test_the_workers_of_a_py_dataset_work():
    batches = Batches((IMAGES,), workers=3)
    new_vae().fit(batches, verbose=0)
    assert batches.most_at_once > 1


@pytest.mark.parametrize("form", ["tf.data", "PyDataset", "generator"])
def test_endless_data_with_a_number_of_steps(form):
    def endless():
        batches = EndlessBatches((IMAGES,))
        if form == "tf.data":
            return tf_data((IMAGES,)).repeat()
        return batches if form == "PyDataset" else (batch for batch in batches)

    found, expected = new_vae(), new_vae()
    history = found.fit(
        endless(), epochs=2, steps_per_epoch=3, validation_data=endless(), validation_steps=2, shuffle=False, verbose=0
    ).history
    assert len(history["val_loss"]) == 2
    expected.fit(IMAGES, batch_size=SIZE, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.predict(endless(), steps=2, verbose=0).shape == (2 * SIZE, *SHAPE)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow keeps them")
@pytest.mark.parametrize("form", ["tf.data", "PyDataset", "generator"])
def test_a_deleted_model_that_saw_a_data_set_leaves_no_compiled_step(form):
    def count():
        gc.collect()
        return sum(type(thing).__name__ == "FuncGraph" for thing in gc.get_objects())

    before = count()
    vae, data = new_vae(), DATA_SETS[form]((IMAGES,))
    vae.compile("sgd", jit_compile=False)
    vae.fit(data, validation_data=DATA_SETS[form]((IMAGES,)), verbose=0)
    assert count() > before
    del vae, data
    assert count() == before

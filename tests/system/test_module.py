"""How `vae_utils` is laid out: small files that import one way, TensorFlow in one place, nothing private of Keras."""

import ast
import re
import subprocess
import sys
import tomllib

import keras
import pytest

from tools.chapters import ROOT

FILES = sorted((ROOT / "vae_utils").glob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)

#: Each module imports from the rows above its own, and only from them.
FLOORS = (
    ("_mnist", "_replicas", "_validation"),
    ("datasets", "distributions"),
    ("layers", "likelihoods", "training"),
    ("_gate",),
    ("_inference",),
    ("models",),
    ("architectures", "evaluation", "plotting"),
)
TENSORFLOW = ("_gate", "_replicas", "training")
PRIVATE_OF_KERAS = ("training",)  # with a test each that says when it is no longer needed


def imports(source):
    """List what a source imports, wherever it does: `vae_utils.models`, `keras`, `keras.ops`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{'.' * node.level}{node.module}.{name.name}" for name in node.names]
    return found


def import_faults(name, source):
    """Say which imports of the module `name` point up, sideways or to TensorFlow."""
    floor = {module: k for k, modules in enumerate(FLOORS) for module in modules}
    faults = []
    for imported in imports(source):
        package, _, rest = imported.partition(".")
        other = rest.split(".")[0]
        if package == "vae_utils" and not floor.get(other, len(FLOORS)) < floor[name]:
            faults.append(f"imports {imported}, which is not below it")
        if package == "tensorflow" and name not in TENSORFLOW:
            faults.append("imports TensorFlow")
        if imported.startswith((".", "keras.src", "tensorflow.python")):
            faults.append(f"imports {imported}")
    return faults


def own_names(source):
    """The functions, methods and attributes of `self` that a source defines."""
    nodes = list(ast.walk(ast.parse(source)))
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    stored = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return functions | {node.attr for node in stored if ast.unparse(node.value) == "self"}


def private_faults(source, own):
    """Say which private attributes a source uses that are not among our own names."""
    used = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            used.append((node.lineno, node.attr))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            used += [(node.lineno, part.value) for part in node.args if isinstance(part, ast.Constant)]
    return [f"line {n}: {name}" for n, name in used if re.match("_[^_]", str(name)) and name not in own]


@every_file
def test_file_is_small(path):
    assert len(path.read_text("utf-8").splitlines()) < 300


def test_every_module_has_its_floor():
    assert {path.stem for path in FILES} - {"__init__"} == {name for floor in FLOORS for name in floor}


@every_file
def test_imports_point_one_way(path):
    if path.stem == "__init__":
        assert not [
            name for name in imports(path.read_text("utf-8")) if name.split(".")[0] not in sys.stdlib_module_names
        ]
    else:
        assert not import_faults(path.stem, path.read_text("utf-8"))


@every_file
def test_nothing_private_of_keras_is_used(path):
    own = set().union(*(own_names(path.read_text("utf-8")) for path in FILES))
    assert not {name for name in own & set(dir(keras.Model)) if re.match("_[^_]", name)}, "Keras uses this name itself"
    assert path.stem in PRIVATE_OF_KERAS or not private_faults(path.read_text("utf-8"), own)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from vae_utils.training import KLWarmUp", None),
        ("from vae_utils import models", "models"),
        ("from vae_utils.architectures import dense_vae", "architectures"),
        ("def f():\n    import vae_utils.evaluation", "evaluation"),
        ("import tensorflow as tf", "TensorFlow"),
        ("from keras.src import backend", "keras.src"),
        ("from . import layers", "imports ."),
    ],
)
def test_an_import_that_points_the_wrong_way_is_found(source, fault):
    faults = import_faults("models", source)
    assert bool(faults) == bool(fault) and all(fault in found for found in faults)


@pytest.mark.parametrize(
    ("source", "private"),
    [
        ("model._initial_epoch = None", True),
        ("class A(B):\n    def f(self):\n        return self._flatten_layers()", True),
        ("getattr(optimizer, '_name')", True),
        (
            "class A(B):\n    def __init__(self):\n        self._mine = 1\n    def f(self):\n        return self._mine",
            False,
        ),
        ("class A(B):\n    def _f(self): ...\n    def g(self):\n        return self._f()", False),
        ("type(self).__name__", False),
    ],
)
def test_what_is_private_is_found(source, private):
    assert bool(private_faults(source, own_names(source))) == private


def test_module_imports_only_what_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.match(r"[\w-]+", d)[0].replace("-", "_") for d in project["dependencies"]}
    # TensorFlow is an extra, imported only where Keras runs on it; PyTorch comes with the user's own DataLoader.
    declared = (declared | {"sklearn", "vae_utils", "tensorflow", "torch"}) - {"scikit_learn"}
    for path in FILES:
        packages = {name.split(".")[0] for name in imports(path.read_text("utf-8"))}
        assert packages <= declared | set(sys.stdlib_module_names), path.name


def test_import_waits_neither_for_keras_nor_for_matplotlib():
    code = "import sys, vae_utils; print(sorted({'keras', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == "[]"

"""The three columns stay a mirror, statement by statement, and nobody imports what is not below him."""

import ast
import importlib
import io
import re
import tokenize
from pathlib import Path

from tests.conftest import IMPLEMENTATIONS

import pytest

ROOT = Path(__file__).parents[1]
MODULES = ("model", "train")

# What stands in one column or two and has no row beside it, and why.
ONLY = {
    "filters = network.filters * 2 ** i": "lowlevel's weights know their shapes",
    "filters = network.filters * 2 ** network.depth": "as above",
    "bias, fused = (network.batch_norm == 'none', network.batch_norm == 'fused')": "as above, and its batch_norm asks itself",
    "momentum, epsilon = (network.bn_momentum, network.bn_epsilon)": "as above",
    "network = self.network": "Keras: a function, and no class",
    "dtype = f'mixed_{network.precision}' if '16' in network.precision else network.precision": "Keras: of every layer",
    "x = tf.cast(x, network.variable_dtype)": "Keras: an argument of the head",
    "dtype = network.variable_dtype": "as above",
    "logits = layers.Conv2D(network.classes, 1, dtype=dtype, name='head')(x)": "a functional model is made of its ends",
    "model = keras.Model(images, logits)": "as above",
    "assign_weights(named_weights(model), initial_weights(network))": "the others make theirs in __init__",
    "bn = FusedBatchNormalization if fused else layers.BatchNormalization": "Keras: a class for each",
    "with tf.GradientTape() as tape": "tf.layers: tf.gradients needs none",
    "if optimizer.loss_scale is not None": "tf.layers: compute_gradients has done it",
    "gradients = {name: g / optimizer.loss_scale for name, g in gradients.items()}": "as above",
    "for images, masks in run.steps()": "Keras: fit is the loop",
    "run.end_step(train_step(images, masks))": "as above, and the callback",
    "train_step = make_train_step(model, config, optimizer)": "as above",
    "model.compile(optimizer, SegmentationLoss(config), jit_compile=config.training.jit)": "as above",
    "if not run.done": "fit makes a step before it asks",
    "model.fit(run.batches": "as above",
}
FORWARD = {"lowlevel": "__call__", "highlevel": "forward", "keras_impl": "UNet"}  # where the rows of the forward pass stand
MIRRORED = {  # functions whose statements are compared; the others are each API's own business. Keras's step is made by fit
    "model": ("forward", "double_conv"),
    "train": ("make_train_step", "train_step", "train", "main"),
}
CONTRACT = {
    "model": ["UNet", "double_conv", "named_weights"],
    "train": ["make_train_step", "train", "main", "make_optimizer", "named_state"],
}
SHARED = {  # what the columns call of the code that they share, and of each other's names
    *("skip_crop", "assign_weights", "initial_weights", "double_conv", "segmentation_loss", "load_examples", "UNet"),
    *("named_weights", "named_state", "make_optimizer", "make_train_step", "Run", "finish", "train_as_told", "append"),
    *("clip_by_global_norm", "range", "reversed", "name_scope", "function"),
}


def source_of(implementation, module):
    return (ROOT / implementation / f"{module}.py").read_text()


def functions(implementation, module):
    """[(name, node)] of the functions and classes; a method counts as a function."""
    found = []

    def visit(body):
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.append((node.name, node))
                visit(node.body)

    visit(ast.parse(source_of(implementation, module)).body)
    return found


def shape_comments(source):
    """Line -> comment that names a shape."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT and "[N," in token.string}


def header(statement):
    """The part of a statement that is not other statements."""
    if isinstance(statement, ast.FunctionDef):
        return []
    parts = {ast.For: ("target", "iter"), ast.If: ("test",), ast.With: ("items",)}.get(type(statement))
    if parts is None:
        return [statement]
    values = [getattr(statement, part) for part in parts]
    return [node for value in values for node in (value if isinstance(value, list) else [value])]


def mirrored(node):
    """The statements of a function that have a row beside them in the other columns, from the outside in."""
    for statement in node.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):  # the docstring
            continue
        if not any(ast.unparse(statement).split("\n")[0].rstrip(":").startswith(only) for only in ONLY):
            yield statement
        if isinstance(statement, ast.If | ast.For | ast.With):
            yield from mirrored(statement)


def rows(node, comments):
    """[(kind of statement, names bound, shared functions called, shape)] of a function, without what has no row beside it."""
    found = []
    for statement in mirrored(node):
        nodes = [n for part in header(statement) for n in ast.walk(part)]
        bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} - {"weights", "images", "_"}
        called = {getattr(n.func, "id", getattr(n.func, "attr", "")) for n in nodes if isinstance(n, ast.Call)}
        end = statement.lineno if isinstance(statement, ast.If | ast.For | ast.With) else statement.end_lineno
        shape = [comments[line] for line in range(statement.lineno, end + 1) if line in comments]
        found.append((type(statement).__name__, sorted(bound), sorted(called & SHARED), shape))
    return found


def column(implementation, module):
    """function -> its rows, with `forward` for the forward pass wherever it stands."""
    comments, found = shape_comments(source_of(implementation, module)), {}
    for name, node in functions(implementation, module):
        name = "forward" if module == "model" and name == FORWARD[implementation] else name
        if name in MIRRORED[module] and isinstance(node, ast.FunctionDef):
            found[name] = rows(node, comments)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_the_same_statements_in_the_same_order(module):
    columns = {name: column(name, module) for name in IMPLEMENTATIONS}
    first = columns["lowlevel"]
    assert first.keys() == set(MIRRORED[module]) and sum(map(len, first.values())) > 15, "something is compared"
    for name, of in columns.items():
        missing = {"make_train_step", "train_step"} if (name, module) == ("keras_impl", "train") else set()
        assert of.keys() == first.keys() - missing
        for function, statements in of.items():
            for k, (a, b) in enumerate(zip(first[function], statements)):
                assert a == b, f"{module}.py, {function}, row {k + 1}: lowlevel {a}, {name} {b}"
            assert len(first[function]) == len(statements), f"{module}.py, {function}: {name} has another number of rows"


def test_what_has_no_row_beside_it_is_there():
    """A line of `ONLY` that no column has any more would let another one pass unseen."""
    texts = set()
    for implementation in IMPLEMENTATIONS:
        for module in MODULES:
            for node in ast.walk(ast.parse(source_of(implementation, module))):
                if isinstance(node, ast.stmt):
                    texts.add(ast.unparse(node).split("\n")[0].rstrip(":"))
    for only in ONLY:
        assert any(text.startswith(only) for text in texts), only


def test_a_row_that_differs_is_seen():
    """The negative control: a statement more, another name, another shared function, another shape."""
    source = source_of("highlevel", "model")
    for old, new in (
        ("            skips.append(x)\n", "            skips.append(x)\n            y = x\n"),
        ("            x = layers.max_pooling2d", "            y = layers.max_pooling2d"),
        ("skips[i], skip_crop(network, i)", "skips[i], 0"),
        ("# [N, H, W, 2C]", "# [N, H, W, C]"),
    ):
        assert source.count(old) == 1, old
        changed = source.replace(old, new)
        node = next(n for n in ast.walk(ast.parse(changed)) if getattr(n, "name", "") == "forward")
        assert rows(node, shape_comments(changed)) != column("lowlevel", "model")["forward"], new


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("module", MODULES)
def test_the_contract_in_the_same_order_and_the_network_first(implementation, module):
    found = functions(implementation, module)
    wanted = [n for n in CONTRACT[module] if (implementation, n) != ("keras_impl", "make_train_step")]
    assert [name for name, _ in found if name in wanted] == wanted
    assert found[0][0] == wanted[0], "the network and the training come first, what is brought along by hand below"
    arguments = {name: [a.arg for a in node.args.args] for name, node in found if name in wanted[1:] and module == "train"}
    assert all(arguments[name] == [a.arg for a in dict(functions("lowlevel", module))[name].args.args] for name in arguments)


def test_three_columns_fit_beside_each_other():
    lines = {i: sum((source_of(i, module).splitlines() for module in MODULES), []) for i in IMPLEMENTATIONS}
    assert max(len(line) for of in lines.values() for line in of) <= 100
    assert len(lines["keras_impl"]) <= 190 < len(lines["highlevel"]) < len(lines["lowlevel"])
    assert sum(map(len, lines.values())) <= 710


def test_no_column_knows_of_several_devices():
    for implementation in IMPLEMENTATIONS:
        for module in MODULES:
            found = re.findall(r"replica|strateg|Global|all_reduce|devices", source_of(implementation, module))
            assert not found, f"{implementation}/{module}.py: {found}, which stands in training/devices.py"


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


BELOW = {"common": {"common"}}  # package -> what it may import of this project
BELOW["data"] = BELOW["common"] | {"data"}
BELOW["training"] = BELOW["data"] | {"training"}
BELOW |= {name: BELOW["training"] | {name} for name in IMPLEMENTATIONS}
BELOW["prediction"] = BELOW["training"] | {*IMPLEMENTATIONS, "prediction"}
BELOW["comparison"] = BELOW["training"] | {*IMPLEMENTATIONS, "comparison"}
BELOW["study"] = BELOW["comparison"] | {"study"}
OWN = {*BELOW, "compare", "predict", "tests"}


@pytest.mark.parametrize("package", BELOW)
def test_import_direction(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        own = {name.split(".")[0] for name in imports(path)} & OWN
        assert own <= BELOW[package], f"{path.relative_to(ROOT)} imports {own - BELOW[package]}"


@pytest.mark.parametrize("package", [*BELOW, "."])
def test_what_is_imported_in_functions_is_there(package):
    """A name that moved is otherwise missed only when the function runs."""
    for path in (ROOT / package).rglob("*.py") if package != "." else ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OWN:
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    is_there = hasattr(module, name) or (Path(module.__file__).parent / f"{name}.py").exists()
                    assert is_there, f"{path.relative_to(ROOT)}: {name} from {node.module}"


def test_no_file_is_longer_than_a_reader_holds_in_mind():
    for path in (path for package in BELOW for path in (ROOT / package).rglob("*.py")):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, f"{path.relative_to(ROOT)}: two files"


def test_no_circle_of_files():
    """Imports in functions count, too."""
    files = {path.relative_to(ROOT).with_suffix(""): path for package in BELOW for path in (ROOT / package).rglob("*.py")}
    files = {".".join(name.parts): path for name, path in files.items()}
    left = {name: {other for other in imports(path) if other in files} - {name} for name, path in files.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"each of these imports another of them: {', '.join(left)}"


def test_no_two_files_of_one_name():
    names = [path.name for package in BELOW if package not in IMPLEMENTATIONS for path in (ROOT / package).rglob("*.py")]
    twice = {name for name in names if names.count(name) > 1} - {"__init__.py", "__main__.py"}
    assert not twice, twice


def test_forbidden_imports_are_seen(tmp_path):
    (tmp_path / "bad.py").write_text("def f():\n    from highlevel import model\n")
    assert "highlevel" in {name.split(".")[0] for name in imports(tmp_path / "bad.py")}


def test_tensorflow_is_started_in_one_place():
    """TF_USE_LEGACY_KERAS must be set before TensorFlow is imported, and its noise held back, whichever module comes first."""
    for package in BELOW:
        first = {name.split(".")[0] for name in imports(ROOT / package / "__init__.py")}
        assert "common" in first or package in ("common", *IMPLEMENTATIONS), package
        for path in (ROOT / package).rglob("*.py"):
            is_starter = package == "common" and path.name == "device.py"
            assert is_starter or "tensorflow" not in set(imports(path)), f"{path}: from common.device import tf"
    starters = {"common.device"} | {
        f"common.{path.stem}" for path in (ROOT / "common").glob("*.py") if "common.device" in set(imports(path))
    }
    for path in (ROOT / implementation / name for implementation in IMPLEMENTATIONS for name in ("model.py", "train.py")):
        first = next(name for name in imports(path) if name in {"keras", *starters})
        assert first in starters, f"{path.relative_to(ROOT)} imports {first} before TensorFlow is started"


def test_no_tf_keras_in_the_sources():
    """With TF_USE_LEGACY_KERAS set, `tf.keras` is not Keras 3."""
    for path in (p for package in BELOW for p in (ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text())
        used = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n) == "tf.keras"]
        assert not used, path

"""The three columns stay a mirror: the same functions in the same order, and nobody imports what is not below him."""

import ast
from pathlib import Path

from tests.conftest import IMPLEMENTATIONS

import pytest

ROOT = Path(__file__).parents[1]


def functions(implementation, module):
    """Names and arguments of the functions below the `# --- the network ---` or `# --- training ---` line, in order.

    A method counts as a function without `self`; `__init__` and `__call__` belong to their class.
    """
    source = (ROOT / implementation / f"{module}.py").read_text()
    start = 1 + next(i for i, line in enumerate(source.splitlines()) if line in ("# --- the network ---", "# --- training ---"))
    found = []

    def visit(body):
        for node in body:
            if isinstance(node, ast.ClassDef):
                found.append((node.name, None))
                visit(node.body)
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
                found.append((node.name, [a.arg for a in node.args.args if a.arg != "self"]))

    visit([node for node in ast.parse(source).body if node.lineno > start])
    return found


def names_in(function, source):
    tree = next(node for node in ast.walk(ast.parse(source)) if getattr(node, "name", None) == function)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def test_the_same_functions_in_the_same_order():
    for module in ("model", "train"):
        columns = [[name for name, _ in functions(i, module)] for i in IMPLEMENTATIONS]
        assert columns[0] == columns[1] == columns[2], module
    train = [functions(i, "train") for i in IMPLEMENTATIONS]
    assert train[0] == train[1] == train[2], "the same arguments too"


def test_the_same_names_inside():
    for function, module in (("UNet", "model"), ("make_train_step", "train"), ("make_eval_step", "train")):
        columns = [names_in(function, (ROOT / i / f"{module}.py").read_text()) for i in IMPLEMENTATIONS]
        shared = {"UNet": {"skips", "skip", "crop", "x", "logits", "i"}, "make_train_step": {"logits", "loss", "tape"}}
        for column in columns:
            assert shared.get(function, {"logits"}) <= column, function


def test_every_column_can_be_read_in_ten_minutes():
    for implementation in IMPLEMENTATIONS:
        lines = sum(len((ROOT / implementation / f"{m}.py").read_text().splitlines()) for m in ("model", "train"))
        assert lines <= 330, implementation


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


OWN = ("common", "data", *IMPLEMENTATIONS, "comparison", "compare", "tests")
ALLOWED = {
    "data": {"common", "data"},
    "common": {"common", "data"},  # data needs common.config; the training loop needs data
    **{name: {"common", "data", name} for name in IMPLEMENTATIONS},
    "comparison": {"common", "data", *IMPLEMENTATIONS, "comparison"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_import_direction(package):
    for path in (ROOT / package).glob("*.py"):
        own = {name.split(".")[0] for name in imports(path)} & set(OWN)
        assert own <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {own - ALLOWED[package]}"
    if package == "common":  # only what runs the training looks upwards to data
        above = {p.name for p in (ROOT / "common").glob("*.py") if any(n.split(".")[0] == "data" for n in imports(p))}
        assert above == {"loop.py", "report.py"}


def test_forbidden_imports_are_seen(tmp_path):
    (tmp_path / "bad.py").write_text("def f():\n    from highlevel import model\n")
    assert "highlevel" in {name.split(".")[0] for name in imports(tmp_path / "bad.py")}


def test_every_package_settles_the_environment_first():
    """TF_USE_LEGACY_KERAS must be set before TensorFlow is imported, whichever module a user imports first."""
    for package in ("data", *IMPLEMENTATIONS, "comparison"):
        assert "common" in set(imports(ROOT / package / "__init__.py")), package


def test_no_tf_keras_in_the_sources():
    """With TF_USE_LEGACY_KERAS set, `tf.keras` is not Keras 3."""
    for path in (p for package in ALLOWED for p in (ROOT / package).glob("*.py")):
        tree = ast.parse(path.read_text())
        used = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n) == "tf.keras"]
        assert not used, path

"""The six files of the columns as rows: what does the same thing in all three stands beside each other.

A file is cut into statements (of a compound one its first lines), each with the comments above it. Functions of the same name
are paired, wherever they stand in their files; in them the statements that are most alike, in order (`align`). A row is named
after its function and what its statement makes, binds or calls. Nothing here knows a line number, or how a line is written.
"""

import ast
import collections
import difflib
import functools
import re
from pathlib import Path
from typing import NamedTuple

from common.config import IMPLEMENTATIONS

ROOT = Path(__file__).parents[1]
MODULES = ("model", "train")

# Functions that do one job under two names; a method of the network counts as a function, which it is in Keras.
SAME = {"call": "forward", "FusedBatchNormalization": "batch_norm", "batch_norm/call": "batch_norm"}
SAME |= {"SGD/resource_apply_dense": "SGD/apply"}
# Statements that do one job and have too few words in common.
ALIKE = {("end_step", "fit"), ("train_step", "compile"), ("cast", "images")}
# Calls whose function has another name: of the network, of the gradients of what stands there, of a whole step, of a class.
CALLED = dict.fromkeys(("model", "tape.gradient", "optimizer.compute_gradients", "train_step", "model.fit"), "forward")
CALLED["bn"] = "batch_norm"
FIRST = ("double_conv", "forward", "make_train_step")  # what a reader comes for stands above all else


class Part(NamedTuple):
    """Some lines of one file that have one job."""

    function: str  # that it stands in: "double_conv", "Adam/apply"; "" at the top, "end" below all functions
    name: str  # within the function, with the loops around it: "down/double_conv"; "" of its first lines
    code: ast.AST
    first: int  # line numbers, from 1; the blank lines and comments above it belong to it
    last: int

    @property
    def header(self):
        """The code, of a compound statement without what is inside of it."""
        lines = [line for line in ast.unparse(self.code).splitlines() if not line.startswith("@")]
        return lines[0] if hasattr(self.code, "body") else "\n".join(lines)

    @property
    def word(self):
        return self.name.split("/")[-1]


class Row(NamedTuple):
    name: str  # "model/double_conv/bn"
    parts: dict  # implementation -> `Part`, of those that have one


def source(implementation, module):
    return (ROOT / implementation / f"{module}.py").read_text(encoding="utf-8")


def calls(node):
    """What is called, as it is written, from the outermost call to the innermost."""
    functions = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
    layers = [f.func if isinstance(f, ast.Call) and ast.unparse(f.func) != "getattr" else f for f in functions]  # Layer(...)(x)
    return [ast.unparse(function) for function in layers]


def last_word(text):
    return ([""] + re.findall(r"\w+", text))[-1]


def word(statement):
    """What a statement does: the layer that it makes, the name that it binds, or what it calls."""
    text, called = ast.unparse(statement), calls(statement)
    match statement:
        case ast.FunctionDef() | ast.ClassDef():
            return statement.name.strip("_")
        case ast.Import() | ast.ImportFrom():
            return "imports"
        case ast.Expr(value=ast.Constant()):
            return "about"
        case ast.For():  # over the levels, which the names of layers tell: "down" or "up"
            return next(iter(re.findall(r"f'([a-z]+)\{", text)), "for_" + re.findall(r"\w+", text)[1])
        case ast.If():
            return "if_" + last_word(ast.unparse(statement.test).split(" ")[0])
        case ast.With():
            return last_word(ast.unparse(statement.items[0]).split("(")[0 if " as " not in text else -1])
    given = [value for call in ast.walk(statement) if isinstance(call, ast.Call) for value in call.args + call.keywords]
    for value in map(ast.unparse, given):
        if layer := re.search(r"\}[/_]([a-z]+)(?:\{k\})?'$|'(head)'$", value):
            return layer[1] or layer[2]  # "conv" of f"{name}/conv{k}"
    if called and re.search(r"\.assign\w*$", called[0]):  # binds, too
        return last_word(called[0].rsplit(".", 1)[0])
    for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
        first = getattr(target, "elts", [target])[0]
        name = first and last_word(ast.unparse(first).split("[")[0])
        if name and name != "x":  # x is what flows through the network
            return name
    return last_word(called[0]) if called else text.split(" ")[0]  # "return"


def cut(text):
    """[`Part`] of a file, in order: each of its lines is in exactly one."""
    lines, found = text.splitlines(), []

    def add(statement, function, name):
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
        while first > 1 and not re.match(r"\s*(?!else:)[^\s#]", lines[first - 2]):
            first -= 1
        if not (found and found[-1][:2] == (function, name) and name == "imports"):  # a block of imports is one part
            found.append(Part(function, name, statement, first, 0))

    def visit(body, function, loops=(), inside=None):
        """inside: the definition around it."""
        for k, statement in enumerate(body):
            if k == 0 and inside and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # a docstring belongs to its function
            name, key = word(statement), function
            if isinstance(statement, ast.ClassDef | ast.FunctionDef) and not isinstance(inside, ast.FunctionDef):
                key = f"{function}/{name}" if inside and function != "UNet" else name
                key = key if f"def {SAME.get(key)}(" in text else SAME.get(key, key)
                name = "" if key != function else name
            elif not inside:
                key = "end" if any(part.function for part in found) else ""
            add(statement, key, "/".join([*loops, name]))
            below = (*loops, name) if name in ("down", "up") else loops
            define = statement if isinstance(statement, ast.ClassDef | ast.FunctionDef) else inside
            network = isinstance(statement, ast.FunctionDef) and key == "UNet"  # in Keras a function, which is the forward pass
            visit(getattr(statement, "body", ()), "forward" if network else key, below, define or statement)
            visit(getattr(statement, "orelse", ()), key, below, define or statement)

    visit(ast.parse(text).body, "")
    return [part._replace(last=after - 1) for part, after in zip(found, [part.first for part in found[1:]] + [len(lines) + 1])]


def likeness(a, b):
    """From 0, of two parts of paired functions that must not stand beside each other, to 2."""
    if {(a.word, b.word), (b.word, a.word)} & ALIKE or not a.name and not b.name:
        return 2
    kinds = {type(part.code) if hasattr(part.code, "body") else None for part in (a, b)}
    if len(kinds) > 1 or not a.name or not b.name:
        return 0
    ratio = max(
        difflib.SequenceMatcher(None, *(text.lower().replace("_", "") for text in pair), autojunk=False).ratio()
        for pair in ((a.header, b.header), (a.word, b.word))
    )
    return 1 + ratio if a.word == b.word else ratio if ratio > 0.5 else 0


def align(a, b, alike):
    """Two lists of rows in one, in order: pairs so that the sum of what they are alike is largest."""
    best = [[(0, None)] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in reversed(range(len(a) + 1)):
        for j in reversed(range(len(b) + 1)):
            ways = [(best[i + 1][j][0], (1, 0))] if i < len(a) else []
            ways += [(best[i][j + 1][0], (0, 1))] if j < len(b) else []
            if i < len(a) and j < len(b) and (of := alike(a[i], b[j])):
                ways.append((best[i + 1][j + 1][0] + of, (1, 1)))
            best[i][j] = max(ways, key=lambda way: way[0], default=(0, None))
    i = j = 0
    while step := best[i][j][1]:
        yield (a[i] if step[0] else {}) | (b[j] if step[1] else {})
        i, j = i + step[0], j + step[1]


def order(functions):
    """The functions of all columns: those of all three as they come, and below them what not all have.

    What stands above the same function of all three in each column that has it, stays there. functions: [names] of each column.
    """
    common = [name for name in functions[0] if all(name in of for of in functions)]

    def place(name):
        having = [of for of in functions if name in of]
        above = max(sum(other in common for other in of[: of.index(name)]) for of in having)
        own = next(k for k, of in enumerate(functions) if name in of)
        return len(common) if len(having) == 1 else above, len(having) == 1, name in common, own, functions[own].index(name)

    return sorted(dict.fromkeys(sum(functions, [])), key=lambda name: (name == "end", place(name)))


def rows(module, sources=None):
    """[`Row`] of `model` or `train`. sources: implementation -> text, by default of the files."""
    columns = {name: cut((sources or {}).get(name) or source(name, module)) for name in IMPLEMENTATIONS}
    functions = [list(dict.fromkeys(part.function for part in of)) for of in columns.values()]
    classes = order([list(dict.fromkeys(name.split("/")[0] for name in of)) for of in functions])
    found = []
    ahead = {name: k - len(FIRST) for k, name in enumerate(FIRST)}
    for function in sorted(order(functions), key=lambda name: ahead.get(name, classes.index(name.split("/")[0]))):
        merged = []
        for name, of in columns.items():
            mine = [{name: part} for part in of if part.function == function]
            merged = list(align(merged, mine, lambda row, one: max(likeness(p, q) for p in row.values() for q in one.values())))
        for parts in merged:
            found.append(Row("/".join(filter(None, (module, function, next(iter(parts.values())).name))), parts))
    names, seen = {}, collections.Counter()
    for row in sorted(found, key=lambda row: -len(row.parts)):  # of several of one name the first keeps it, and what all have
        seen[row.name] += 1
        names[id(row)] = row.name + (f"-{seen[row.name]}" if seen[row.name] > 1 else "")
    return [row._replace(name=names[id(row)]) for row in found]


@functools.cache
def all_rows():
    return [row for module in MODULES for row in rows(module)]


def called(row, implementation, table):
    """The rows of the functions that a row's lines call in a column: what these make is counted at both.

    What a column has no lines for, it does where the others call it.
    """
    parts = [row.parts[implementation]] if implementation in row.parts else list(row.parts.values())
    names = {name for part in parts for name in calls(ast.parse(part.header + " pass" * hasattr(part.code, "body")))}
    functions = {CALLED.get(name, re.sub(r"^(self|optimizer)\.", "", name)) for name in names}
    at = [other for other in table if implementation in other.parts and functions & set(other.name.split("/")[1:])]
    return [other.name for other in at if other.parts[implementation].function != parts[0].function]

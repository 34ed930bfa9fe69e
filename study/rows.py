"""The six files of the columns as rows: what does the same thing in all three stands beside each other.

A file is cut into parts, a statement each (of a compound one its first lines), with the comments above it. A part is named by
what it does: `TOPICS` reads that off its code, and what they do not know is named after what it binds or calls. Parts of the
same name, in the same order, make a row. Nothing here knows a line number, so that the rows follow the code when it changes.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

from common.config import IMPLEMENTATIONS

ROOT = Path(__file__).parents[1]
MODULES = ("model", "train")

# Functions that do one job under two names, and those that stand as parts of another.
FUNCTIONS = {
    "UNet/__init__": "init",
    "UNet/__call__": "forward",
    "UNet/double_conv": "double_conv",
    "FusedBatchNormalization": "batch_norm",
    "FusedBatchNormalization/call": "batch_norm",
    "SGD/_resource_apply_dense": "SGD/apply",
}

# The first pattern found in a part's code names it. Consecutive parts of one name are one part.
TOPICS = (
    (r"^super\(\)|^self\.(network|config|run) = |^network(, weights)? = \(?self", ""),  # the function's own first lines
    (r"^(import|from) ", "imports"),
    (r"^sys\.path", "path"),
    (r"^layers = |^warnings\.|^keras\.config\.set_image", "setup"),
    (r"^if __name__|^run_script", "script"),
    (r"^class FusedBatch|^def batch_norm", "def"),
    (r"^for i in range", "down"),
    (r"^for i in reversed", "up"),
    (r"^for k in ", "twice"),
    (r"^if network\.dropout|^x = dropout\(|^dropout = |layers\.Dropout\(", "dropout"),
    (r"check_size", "check_size"),
    (r"^self\(tf\.zeros", "first_call"),
    (r"^x = tf\.cast\(images|^images = x = |set_dtype_policy|^policy = ", "input"),
    (r"^x = tf\.cast\(x, network|^dtype = network\.variable|^return conv2d\(x, weights, 'head|name='head'", "head"),
    (r"max_pool|MaxPooling2D", "pool"),
    (r"up\{i\}[/_]deconv", "deconv"),
    (r"^skip, crop|^if crop|^skip = ", "crop"),
    (r"tf\.concat|Concatenate", "concat"),
    (r"^x = (self\.)?double_conv\(", "double_conv"),
    (r"conv\{k\}", "conv"),
    (r"^if network\.batch_norm|^fused, momentum|^epsilon = network|^(bn|normalize|several|stock) = |bn\{k\}", "bn"),
    (r"getattr\(tf\.nn, network\.activation|layers\.Activation", "activation"),
    (r"^(class|def) [gG]lobal_?[bB]atch", "def"),
    (r"fused_batch_norm\(|^training = bool", "kernel"),
    (r"^new_mean, new_variance = |^moving_(mean|variance)\.assign\(new|^self\.moving_(mean|variance)\.assign", "kernel/move"),
    (r"^moving_(mean|variance)\.assign\(moving", "move"),
    (r"moments\(|^mean, variance = ", "moments"),
    (r"tf\.nn\.batch_normalization|^wide = ", "normalize"),
    (r"GradientTape", "tape"),
    (r"^logits = model", "logits"),
    (r"^loss = segmentation", "loss"),
    (r"tape\.gradient|compute_gradients", "gradients"),
    (r"^if config\.training\.clip_norm|^gradients(, _)? = .*clip_by_global_norm|^gradients = share", "clip"),
    (r"^with tf\.name_scope", "scope"),
    (r"^if settings\.optimizer|^beta_1, beta_2, epsilon = \(settings", "adam"),
    (r"^return Adam|^optimizer = (keras\.optimizers\.)?Adam|^dtype = config\.network", "adam"),
    (r"^return SGD|^optimizer = (keras\.optimizers\.)?SGD|^else$", "sgd"),
    (r"^optimizer\._create_slots|^optimizer\.build", "slots"),
    (r"^optimizer\.apply", "apply"),
    (r"^m\.assign", "m"),
    (r"^v\.assign", "v"),
    (r"^(w\.assign|return tf\.raw_ops\.ResourceApply)", "w"),
    (r"^for images, masks|^if not run\.done|^model\.fit|^run\.end_step\(train", "loop"),
    (r"^model\.compile|^train_step = make", "train_step"),
)


# What a part calls by another name than the function's.
CALLED = {
    "model": "forward",
    "super().call": "forward",
    "tape.gradient": "forward",  # it makes the gradients of what stands there
    "optimizer.compute_gradients": "forward",
    "optimizer.apply_gradients": "Adam",
    "bn": "batch_norm",
    "step": "make_train_step",
    "make_train_step": "",  # it only defines the step
    "call": "",
}


class Part(NamedTuple):
    """Some lines of one file that have one job."""

    name: str  # of its row, without the module: "double_conv/bn"
    first: int  # line numbers, from 1; the blank lines and comments above it belong to it
    last: int


class Row(NamedTuple):
    name: str  # "model/double_conv/bn"
    parts: dict  # implementation -> `Part`, of those that have one


def source(implementation, module):
    return (ROOT / implementation / f"{module}.py").read_text(encoding="utf-8")


def code_of(statement):
    """One line that stands for a statement, without what is inside of it."""
    text = ast.unparse(statement)
    lines = [line for line in text.splitlines() if not line.startswith("@")]
    return lines[0].rstrip(":") if isinstance(statement, COMPOUND) else text


COMPOUND = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.With, ast.Try)


def topic(statement, name):
    """What a statement does, in a word. name: of the function that it stands in."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return statement.name
    text = code_of(statement)
    if name.split("/")[0] not in ("Adam", "SGD") or not isinstance(statement, ast.For | ast.If):
        for pattern, found in TOPICS:
            if re.search(pattern, text):
                return found
    if isinstance(statement, ast.Return):
        return "return"
    if isinstance(statement, ast.If):
        return topic(statement.body[0], name)
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    nodes = [node for target in targets if target for node in ast.walk(target)]
    nodes += [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
    for node in nodes:
        if isinstance(node, ast.Name | ast.Attribute) and (word := getattr(node, "attr", getattr(node, "id", ""))) != "self":
            return word
    return type(statement).__name__.lower()


def starts(text):
    """[(line, name)]: where each part of a file begins, in order; the lines above a statement are not yet counted to it."""
    lines, found = text.splitlines(), []

    def add(line, *names):
        found.append((line, "/".join(names)))

    def visit(body, place, half):
        """place: the function's name. half: "down" or "up" within the loops over the levels."""
        for statement in body:
            first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                if not place:
                    add(first, "about")
                continue  # a docstring belongs to its function
            if isinstance(statement, ast.ClassDef):
                inside = FUNCTIONS.get(statement.name, statement.name)
                add(first, inside)
                visit(statement.body, inside if inside == "batch_norm" else statement.name, "")
            elif isinstance(statement, ast.FunctionDef):
                name = f"{place}/{statement.name}" if place else statement.name
                nested = place and place[0].islower() and place != "batch_norm"  # a function within a function
                inside = place if nested else FUNCTIONS.get(name, name.replace("__", ""))
                if place == "batch_norm":
                    inside = place
                add(first, inside, *([statement.name] if nested or place == "batch_norm" else []))
                # a functional model is the forward pass itself
                visit(statement.body, "forward" if (name, place) == ("UNet", "") else inside, half)
            else:
                word = topic(statement, place)
                add(first, *filter(None, (place, half, word)))
                if isinstance(statement, COMPOUND):
                    below = word if word in ("down", "up") else half
                    visit(statement.body, place, below)
                    other = getattr(statement, "orelse", [])
                    if other:
                        line = max(
                            n
                            for n in range(statement.lineno, other[0].lineno + 1)
                            if re.match(r" *(else|elif)\b", lines[n - 1])
                        )
                        add(line, *filter(None, (place, half, "sgd" if place == "make_optimizer" else "else")))
                        visit(other, place, below)

    visit(ast.parse(text).body, "", "")
    return found


def parts(text):
    """[`Part`] of a file, in order: each of its lines is in exactly one."""
    lines, found = text.splitlines(), []
    code = re.compile(r"\s*[^\s#]")
    begins = []
    for line, name in starts(text):
        while line > 1 and not code.match(lines[line - 2]):  # comments and blank lines above
            line -= 1
        begins.append((line, name))
    begins[0] = (1, begins[0][1])
    for (line, name), after in zip(begins, [line for line, _ in begins[1:]] + [len(lines) + 1]):
        if found and found[-1].name == name:
            found[-1] = found[-1]._replace(last=after - 1)
        else:
            found.append(Part(name, line, after - 1))
    seen, unique = {}, []
    for part in found:  # what comes again gets a number
        seen[part.name] = seen.get(part.name, 0) + 1
        unique.append(part._replace(name=part.name + (f"-{seen[part.name]}" if seen[part.name] > 1 else "")))
    return unique


def merge(a, b):
    """Two lists of {implementation: `Part`} in one: the longest common subsequence of names side by side."""
    names = [[next(iter(row.values())).name for row in rows] for rows in (a, b)]
    length = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            same = names[0][i] == names[1][j]
            length[i][j] = length[i + 1][j + 1] + 1 if same else max(length[i + 1][j], length[i][j + 1])
    i = j = 0
    merged = []
    while i < len(a) or j < len(b):
        if i < len(a) and j < len(b) and names[0][i] == names[1][j]:
            merged.append(a[i] | b[j])
            i, j = i + 1, j + 1
        elif j == len(b) or i < len(a) and length[i + 1][j] >= length[i][j + 1]:
            merged.append(a[i])
            i += 1
        else:
            merged.append(b[j])
            j += 1
    return merged


def rows(module, sources=None):
    """[`Row`] of `model` or `train`. sources: implementation -> text, by default of the files.

    A name that stands in two places, since the columns have it in another order, is told apart by its implementation.
    """
    sources = sources or {name: source(name, module) for name in IMPLEMENTATIONS}
    merged = []
    for name in IMPLEMENTATIONS:
        merged = merge(merged, [{name: part} for part in parts(sources[name])])
    found, seen = [], set()
    for of in merged:
        first, part = next(iter(of.items()))
        name = f"{module}/{part.name}"
        name = f"{name}-{first}" if name in seen else name
        seen.add(name)
        found.append(Row(name, of))
    return found


def all_rows():
    return [row for module in MODULES for row in rows(module)]


def called(row, implementation, table):
    """The rows of the functions that a row's lines call in a column: what these make is counted at both."""
    if not (part := row.parts.get(implementation)):
        return []
    lines = source(implementation, row.name.split("/")[0]).splitlines()[part.first - 1 : part.last]
    names = re.findall(r"(?<![\w.])((?:(?:self|optimizer|tape|super\(\))\.)?\w+)\(", "\n".join(lines))
    functions = {CALLED.get(name, name.split(".")[-1]) for name in names}
    at = [other for other in table if implementation in other.parts and functions & set(other.name.split("/")[1:-1])]
    return [other.name for other in at if other.name.split("/")[1] != row.name.split("/")[1]]

"""How much is the proof worth? Faults, planted one at a time in copies of the columns, and what the ladder says of each.

    python -m comparison.proof.mutants                    all of them: an hour on 2 cores
    python -m comparison.proof.mutants --limit 20         so many, evenly spread

A fault is one place in the syntax tree that reads otherwise (another operator, constant, axis or variable, an order, a term or
a statement left out), or a trap of docs/differences.md. The copy climbs as a column of the reader's own, beside lowlevel, on a
tiny network, in the `WAYS` until a rung fails; and alone beside the formulas in NumPy, which is what is left to see it if all
three had the same fault. What is shared, the loss and the crop, is judged by NumPy alone.
"""

import argparse
import ast
import collections
import contextlib
import io
import itertools
import json
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from common.cli import count, run_script
from common.config import Config, Size, UserError, Weights
from common.output import write_json
from comparison import columns
from comparison.proof.ways import EXACT_CONSTANTS, Case, prepare

import numpy as np
from tqdm import tqdm

TINY = dict(filters=2, depth=1, batch_size=2, images=8, image_size=Size(16, 16))
# title -> (changes of the configuration, options of `Case`); with constants that are sums of few powers of two but for one
WAYS = {
    "explicit, dropout, clipped": (dict(batch_norm="explicit", dropout=0.5, clip_norm=0.1), {}),
    "the paper's, with SGD": (
        dict(padding="valid", activation="relu", batch_norm="none", dropout=0.5, classes=2, loss="cross_entropy")
        | dict(weight_map=True, optimizer="sgd", clip_norm=0.1, precision="float64", depth=2),
        dict(halve_rate=True),
    ),
    "fused": ({}, {}),
    "float64, as written": (
        dict(batch_norm="explicit", precision="float64", channels=3, classes=3, depth=2, loss="dice_ce")
        | dict(class_weights=Weights((0.5, 1.0, 2.5))),
        dict(void=True),
    ),
    "weights and void": (
        dict(batch_norm="none", classes=1, loss="dice_ce", class_weights=Weights((0.5, 2.5)), clip_norm=64.0),
        dict(void=True),
    ),
    "weight map and void": (dict(batch_norm="none", classes=1, loss="dice_ce", weight_map=True), dict(void=True)),
    "bfloat16": (dict(precision="bfloat16"), {}),
    "float16": (dict(precision="float16"), {}),
    "bfloat16, no batch norm": (dict(precision="bfloat16", batch_norm="none"), {}),
    "bfloat16, explicit": (dict(precision="bfloat16", batch_norm="explicit"), {}),
}
SHELL = ("train", "main", "RunCallback")  # of a run, which other tests judge
SWAPPED = dict(
    gamma="beta", moving_mean="moving_variance", mean="variance", m="v", beta_1="beta_2", skip="x", momentum="epsilon"
)
SWAPPED |= {b: a for a, b in SWAPPED.items()} | {"x": "x"}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
WORDS = {"VALID": "SAME", "same": "valid", "valid": "same", "none": "fused", "adam": "sgd"}
UNSEEN = {"jit_compile", "autograph", "name"}  # arguments without a number
TRAPS = {  # of docs/differences.md, but for those that `variants` plants: column and file -> [(what stands there, the trap)]
    "lowlevel/train.py": [
        ("(tf.sqrt(v) + self.epsilon)", "tf.sqrt(v + self.epsilon)"),
        ("tf.sqrt(v) + self.epsilon", "tf.sqrt(v / (1 - beta_2**t)) + self.epsilon"),
        ("self.momentum * m - lr * g", "self.momentum * m - g"),
        ("tf.sqrt(tf.reduce_sum(", "tf.sqrt(tf.reduce_max("),
    ],
    "lowlevel/model.py": [
        ("variance * (1 - momentum)", "variance * (1 - momentum) * 512 / 511"),
        ("momentum + mean * (1 - momentum)", "(1 - momentum) + mean * momentum"),
        ("wide = tf.cast(x, gamma.dtype)", "wide, gamma, beta = x, tf.cast(gamma, x.dtype), tf.cast(beta, x.dtype)"),
        ("seed = tf.cast(state, tf.int32)", "seed = [self.network.seed, 0]"),
    ],
    "highlevel/train.py": [
        ("beta ** tf.cast(global_step + 1", "beta ** tf.cast(global_step"),
        ("SGD(learning_rate, settings.momentum)", "tf.compat.v1.train.MomentumOptimizer(learning_rate, settings.momentum)"),
        ("map(number, (settings.beta_1", "map(float, (settings.beta_1"),
        ("tf.clip_by_global_norm(gradients,", "(lambda gs, c: ([tf.clip_by_norm(g, c) for g in gs], 0))(gradients,"),
    ],
    "highlevel/model.py": [
        ("fused=fused,", "fused=None,"),
        ("use_bias=bias", "use_bias=True"),
        ("tf.cast(getter(name, dtype=tf.float32, **kwargs), dtype)", "getter(name, dtype=dtype, **kwargs)"),
        ("self.dropout(x, training)", "layers.dropout(x, network.dropout, training=training)"),
    ],
    "keras_impl/model.py": [
        ("FusedBatchNormalization if fused else layers.BatchNormalization", "layers.BatchNormalization"),
        ("dropout, seed=network.seed", "dropout, seed=network.seed + 1"),
        ("training = bool(training and self.trainable)", "training = False"),
    ],
    "keras_impl/train.py": [
        ("beta_2, epsilon, global_clipnorm=clip", "beta_2, 1e-8, global_clipnorm=clip"),
        ("beta_2, epsilon, global_clipnorm=clip", "beta_2, epsilon, clipnorm=clip"),
        ("settings.momentum, global", "settings.momentum, nesterov=True, global"),
    ],
}


class Mutant(NamedTuple):
    column: str
    file: str
    line: int
    kind: str  # what was changed: "operator", "term left out", ...
    change: str  # "old -> new"
    source: str  # of the whole file

    @property
    def title(self):
        return f"{self.column}/{self.file}:{self.line}, {self.kind}: {self.change}"


def variants(node, parent):
    """(kind, new text) of every fault at one node of the syntax tree."""
    text = ast.unparse(node)
    if isinstance(node, ast.BinOp) and not isinstance(node.op, (ast.FloorDiv, ast.Mod)):
        if other := OPERATORS.get(type(node.op)):
            yield "operator", f"({ast.unparse(ast.BinOp(node.left, other(), node.right))})"
        for side in (node.left, node.right):
            yield "term left out", f"({ast.unparse(side)})"
    elif isinstance(node, ast.Constant) and not isinstance(parent, ast.Expr):
        if isinstance(node.value, bool):
            yield "constant", str(not node.value)
        elif isinstance(node.value, (int, float)):
            yield "constant", str(node.value + 1)
        elif node.value in WORDS:
            yield "constant", repr(WORDS[node.value])
    elif (
        isinstance(node, (ast.List, ast.Tuple))
        and len(node.elts) > 1
        and not isinstance(parent, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
    ):
        one, two, *rest = node.elts
        if not all(isinstance(element, ast.Constant) for element in node.elts):
            yield "order", ast.unparse(type(node)([two, one, *rest], ast.Load()))
        else:
            yield "axis", ast.unparse(type(node)([*node.elts[:-1]], ast.Load()))
    elif isinstance(node, ast.Call):
        for k, keyword in enumerate(node.keywords):
            if keyword.arg and keyword.arg not in UNSEEN:
                fewer = [other for j, other in enumerate(node.keywords) if j != k]
                yield f"without {keyword.arg}", ast.unparse(ast.Call(node.func, node.args, fewer))
        name = ast.unparse(node.func)
        if node.args and re.match(r"tf\.(cast|sqrt|square|nn\.bias_add|minimum)$|reversed$", name):
            yield "operation left out", ast.unparse(node.args[0])
    elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
        word = node.id if isinstance(node, ast.Name) else node.attr
        if (other := SWAPPED.get(word, word)) != word:
            yield "other variable", text[: -len(word)] + other
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
        yield "condition", f"(not ({text}))"
    elif isinstance(node, ast.AugAssign):
        yield "operator", f"{ast.unparse(node.target)} -= {ast.unparse(node.value)}"
    is_called = isinstance(node, ast.Expr) and not isinstance(node.value, (ast.Constant, ast.Yield))
    if is_called or isinstance(node, ast.Assign) and text.startswith("x = "):
        yield "statement left out", "pass"


def read(column, file):
    return (columns.ROOT / column / file).read_text(encoding="utf-8")


def mutants_of(column, file, only=""):
    """Every `Mutant` of a file, at whatever stands in its functions, or in the one named `only`."""
    source = read(column, file)  # in ASCII, so that what the syntax tree counts, bytes, are characters
    lines, found = source.splitlines(keepends=True), []
    starts = [0, *itertools.accumulate(map(len, lines))]

    def visit(node, parent, function):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if node.name in SHELL:
                return
            function = f"{function}.{node.name}".strip(".")
        for kind, new in variants(node, parent) if function and only in ("", function) else ():
            begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            was = source[begin:end]
            if new != was:
                words = f"{' '.join(was.split())[:70]} -> {new[:70]}"
                found.append(Mutant(column, file, node.lineno, kind, words, source[:begin] + new + source[end:]))
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.arguments, ast.JoinedStr)) and child not in getattr(node, "decorator_list", ()):
                visit(child, node, function)

    visit(ast.parse(source), None, "")
    return found


def trap(column, file, old, new):
    """The `Mutant` that has `new` wherever `old` stands."""
    source = read(column, file)
    line, words = source[: source.index(old)].count("\n") + 1, f"{old[:70]} -> {new[:70]}".replace("\n", " ")
    return Mutant(column, file, line, "trap", words, source.replace(old, new))


def every_mutant():
    """[`Mutant`] of all columns and of what they share."""
    found = [mutants_of(column, file) for column in columns.IMPLEMENTATIONS for file in ("model.py", "train.py")]
    found.append([trap(*path.split("/"), *change) for path, changes in TRAPS.items() for change in changes])
    return sum([*found, mutants_of("common", "losses.py"), mutants_of("common", "shapes.py", "skip_crop")], [])


# --- in a process of its own, which judges one after the other ---


def plant(mutant, folder):
    """Writes the copy of the column that holds the fault to `folder`; of a fault in what is shared, one of lowlevel."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    column = "lowlevel" if mutant.column == "common" else mutant.column
    sources = {file: read(column, file) for file in ("model.py", "train.py")} | {mutant.file: mutant.source}
    for file, source in sources.items():
        if (mutant.column, file) != ("common", mutant.file):
            source = source.replace(f"from {column}.", f"from {folder.name}.")
            if mutant.column == "common":
                shared = mutant.file.removesuffix(".py")
                source = source.replace(f"from common.{shared} import", f"from {folder.name}.{shared} import")
        (folder / file).write_text(source, encoding="utf-8")


def way(title, own):
    """The `Case` of one of `WAYS`, to climb with the column in the folder `own`."""
    as_written, (changes, options) = "as written" in title, WAYS[title]
    config = Config.of(**{**TINY, **({} if as_written else EXACT_CONSTANTS), **changes})
    return Case(f"mutants: {title}", config, 5, not as_written, own=own, beside=("lowlevel",), **options)


def judge(mutant, folder, seen, drawn, ways=WAYS):
    """-> {"ladder": rung and words of the first way that fails, or None; "numpy": the same beside the formulas}.

    seen: what lowlevel computes, by way, kept from one mutant to the next; drawn: the batches.
    """
    from comparison.proof import ladder, outside

    plant(mutant, folder)
    found = {"ladder": None, "numpy": None}
    for title in ways:
        with contextlib.redirect_stdout(io.StringIO()):
            case, batches = prepare(way(title, str(folder)), drawn)
        if title not in seen:
            seen[title] = {"lowlevel": ladder.observe("lowlevel", case, batches)}, ladder.rounded(case, batches)
        if not found["ladder"] and mutant.column != "common":
            found["ladder"] = attempt(title, ladder.climb, case, batches, *seen[title])
        if not found["numpy"]:
            found["numpy"] = attempt(title, lambda small: (outside.climb(small), {}, ""), *outside.cases([case]))
        if found["numpy"] and (found["ladder"] or mutant.column == "common"):
            break
    return found


def attempt(title, climb, *arguments):
    """[title, rung, words] of the first check that fails, or of the error; None where all is well."""
    try:
        checks, _, first = climb(*arguments)
    except Exception as error:  # whatever a fault may lead to
        return [title, "error", str(error)]
    failed = next((check for check in checks if not check.passed), None)
    return failed and [title, failed.rung, first or f"{failed.rung}, {failed.worst}"]


def work(connection):
    np.seterr(all="ignore")  # a fault may lead to infinity
    seen, drawn = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        while request := connection.recv():
            mutant, number = request
            connection.send(judge(mutant, Path(folder) / f"mutant_{number}", seen, drawn))


# --- the report ---


def run(mutants, path):
    """Judges `mutants` in two processes, prints those that slip through and the score, writes JSON to `path` all the while."""
    records, bar = [], tqdm(total=len(mutants), desc="mutants", leave=False, disable=None)

    def judge_all(part):
        process = None
        for number, mutant in enumerate(part):
            process = process or columns.Process("the mutants", work)
            try:
                found = process.ask((mutant, number))
            except UserError as error:  # the fault has ended the process
                found, process = dict.fromkeys(("ladder", "numpy"), ["", "error", str(error)]), None
            records.append({**mutant._replace(source="")._asdict(), **found})
            write_json(path, records, indent=1)
            bar.update()
            if process and number % 60 == 59:  # graphs of many columns fill the memory
                process = process.end()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(judge_all, (mutants[::2], mutants[1::2])))
    bar.close()
    report(path)


def report(path):
    """Prints what slips through, and a row for each kind of fault: how many are planted, are caught, by whom.

    Of those that the ladder catches some need no comparison: they raise an error, or their weights have other names or shapes.
    """
    rows = collections.defaultdict(list)
    for record in sorted(json.loads(path.read_text()), key=lambda record: (record["column"], record["file"], record["line"])):
        mutant = Mutant(**{name: record[name] for name in Mutant._fields})
        alone = record["ladder"] if mutant.column != "common" else None
        raised = bool(alone) and alone[1] in ("error", "structure")
        rows[mutant.kind.partition(" ")[0]].append((mutant.column != "common", bool(alone), raised, 1, bool(record["numpy"])))
        for judge in ["ladder"] * (mutant.column != "common") + ["numpy"]:
            if not record[judge]:
                print(f"slipped through the {judge}: {mutant.title}")
    print(f"\n{'':<20}{'in one column, by the ladder':>36}{'in all three, by NumPy':>36}")
    print(f"{'':<20}" + "".join(f"{word:>12}" for word in ("planted", "caught", "by an error", "planted", "caught")))
    for kind, of in [*rows.items(), ("all", sum(rows.values(), []))]:
        print(f"{kind:<20}" + "".join(f"{sum(column):>12}" for column in zip(*of)))
    print(f"every one in {path}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=count, metavar="N", help="so many of them, evenly spread")
    parser.add_argument("--output", type=Path, default=Path("runs/compare/mutants.json"), help="default: %(default)s")
    parser.add_argument("--report", type=Path, metavar="FILE", help="print the report of such a file, and plant nothing")
    args = parser.parse_args(argv)
    if args.report:
        return report(args.report)
    chosen = every_mutant()
    step = max(1, len(chosen) // args.limit) if args.limit else 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    run(chosen[::step][: args.limit], args.output)


if __name__ == "__main__":
    run_script(main)

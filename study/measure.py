"""What each row becomes: operations, gradients, time, memory, and how far the three are apart there.

An operation of a traced graph carries the Python lines that led to it; each of these lines in a column counts it, so that a
call counts for the line that calls as well. Keras replays a functional model: there the lines are those that made the layer.
"""

import collections
import contextlib
import datetime
import itertools
import platform
import re
import traceback
from unittest import mock

from common.checkpoint import load_checkpoint
from common.config import IMPLEMENTATIONS, UserError
from common.device import be_deterministic, device_name, tf
from comparison import columns
from comparison.benchmark import profile
from comparison.machine import processor
from comparison.proof import exact, finder, ladder
from comparison.proof.apart import difference
from comparison.proof.graph import NO_WORK, collect_one, is_mathematics, statements
from comparison.proof.graph import operations as signatures
from comparison.proof.ways import EXACT_CONSTANTS, Case
from data.loader import load_examples, training_batches
from study import maps, rows

import keras
from tensorflow.python import pywrap_tfe  # to learn which operation a gradient belongs to, which no public function tells
from tensorflow.python.eager import backprop

STEPS = 5
VIEWS = {*NO_WORK, "ReadVariableOp", "Shape", "ShapeN", "Cast"}  # nothing that is kept: weights, sizes, and casts of weights
STEP = "train/make_train_step"
LOOP = "train/train/end_step"  # the line that calls the whole step: in Keras `fit`
# where `fit` does what stands in a row of the other two, and files that tell so
FIT = {"gradients": "/eager/backprop.py", "apply": "/keras/src/optimizers/", "loss": "/losses", "logits": "/keras/src/layers/"}


class Places:
    """The rows that an operation belongs to: those of the lines that led to it; of a Keras layer, also those that made it."""

    def __init__(self, implementation):
        self.rows, self.made, self.layers = {}, {}, {}  # line -> row, layer's name -> its rows, operation's name -> layer's
        for row in rows.all_rows():
            if part := row.parts.get(implementation):
                path = str(rows.ROOT / implementation / f"{row.name.split('/')[0]}.py")
                self.rows |= {(path, line): row.name for line in range(part.first, part.last + 1)}
        self.fits = STEP not in self.rows.values()

    def lines(self, frames):
        """Of Python frames, the rows, from the outermost to the innermost, each once."""
        return list(dict.fromkeys(self.rows[f.filename, f.lineno] for f in frames if (f.filename, f.lineno) in self.rows))

    def of(self, op):
        found = self.lines(op.traceback) + self.made.get(self.layers.get(op.name), [])
        if self.fits:
            files = [frame.filename for frame in op.traceback]
            found += [f"{STEP}/{name}" for name, part in FIT.items() if any(part in file for file in files)][:1]
        return list(dict.fromkeys([LOOP, *found])) if found or self.fits else []

    def watch(self):
        """While this is entered, layers and their operations are remembered."""
        original = keras.layers.Layer.__call__

        def call(layer, *args, **kwargs):
            graph = tf.compat.v1.get_default_graph()
            before = len(graph.get_operations())
            self.made.setdefault(layer.name, self.lines(traceback.extract_stack()))
            result = original(layer, *args, **kwargs)
            for op in graph.get_operations()[before:]:
                self.layers.setdefault(op.name, layer.name)  # a layer within a layer comes first
            return result

        return mock.patch.object(keras.layers.Layer, "__call__", call)


@contextlib.contextmanager
def watch_gradients():
    """{name of an operation: name of the one whose gradient it belongs to}, of what a tape makes while this is entered."""
    original, done, found = backprop._gradient_function, set(), {}

    def gradient(op_name, attrs, n, inputs, outputs, *rest):
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        # told are only the inputs and outputs that the gradient reads; else it is the last of its kind that is still due
        made = [t.op for t in outputs or () if tf.is_tensor(t)]
        made += [op for t in inputs or () if tf.is_tensor(t) for op in reversed(t.consumers())]
        made += reversed(graph.get_operations())
        forward = next((op for op in made if op.type == op_name and (id(graph), op.name) not in done), None)
        result = original(op_name, attrs, n, inputs, outputs, *rest)
        added = graph.get_operations()[before:]
        done.update((id(graph), op.name) for op in added + [forward] * bool(forward))
        found.update({op.name: forward.name for op in added if forward})
        return result

    pywrap_tfe.TFE_Py_RegisterGradientFunction(gradient)
    try:
        yield found
    finally:
        pywrap_tfe.TFE_Py_RegisterGradientFunction(original)


def bytes_of(tensor):
    return tensor.shape.num_elements() * tensor.dtype.size if tensor.shape.is_fully_defined() else 0


def located(text):
    """[(kind, name)] of the operations in a StableHLO text, with the operation of TensorFlow that each was made of."""
    places = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", text, re.MULTILINE))

    def name(place):
        while not (quoted := re.match(r'"([^"]*)"', place)) and (alias := re.search(r"#loc\d+", place)):
            place = places[alias[0]]
        return quoted[1].split("@")[0] if quoted else ""

    return [(kind, name(line.rpartition(" loc(")[2])) for kind, line in statements(text)]


def operations(implementation, config, images, masks):
    """-> (row -> what its lines become, {operation's name: (rows, rows of its forward operation)}, totals)."""
    places = Places(implementation)
    with places.watch(), watch_gradients() as backward:
        graph, optimized, compiled, text = collect_one(implementation, config, images, masks)
    made = {op.name: op for op in graph.get_operations()}
    everything = [*compiled.get_operations(), *made.values()]  # Keras gives the second model of a process other names
    if not backward:  # tf.gradients calls what belongs to the gradient of `a/b` "gradients/a/b_grad/..."
        named = {op.name: re.match(r"gradients(?:_\d+)?/(.+?)_grad/", op.name) for op in everything}
        backward = {name: match[1] for name, match in named.items() if match}
    at = {op.name: places.of(op) for op in everything}
    forward_of = {name: at.get(forward, []) for name, forward in backward.items()}

    def where(name):
        """The rows of an operation of the optimized graph, whose name may have been changed a little."""
        name = name.split(":")[0]
        shorter = re.sub(r"^(ArithmeticOptimizer|ConstantFolding)/|-folded-\d+$", "", name)
        for candidate in (name, shorter):
            if candidate in at:
                return at[candidate], forward_of.get(candidate, [])
        return [], []

    found = collections.defaultdict(lambda: collections.defaultdict(collections.Counter))
    totals = collections.Counter()

    def add(stage, kind, name):
        if kind in NO_WORK:
            return
        rows_, forward = where(name)
        totals[stage] += 1
        totals[f"{stage}, without a row"] += not rows_
        for row in rows_:
            found[row][stage][kind] += 1
        for row in set(forward) - set(rows_):  # a line that calls the whole step has counted it
            found[row][f"gradient, {stage}"][kind] += 1

    for name, op in made.items():
        add("traced", op.type, name)
    for graph_def in optimized:
        for nodes in (graph_def.node, *(f.node_def for f in graph_def.library.function)):
            for node in nodes:
                add("optimized", node.op, node.name)
    for kind, name in located(text):
        add("stablehlo", kind, name)
    totals["mathematics"] = sum(is_mathematics(*found) for found in signatures(text))

    tape = ("/backprop.py", "/gradients_util.py")  # of a tape, and of tf.gradients
    back = {name for name, op in made.items() if any(frame.filename.endswith(tape) for frame in op.traceback)}
    kept = {tensor.name: tensor for name in back for tensor in made[name].inputs}
    kept = {n: t for n, t in kept.items() if t.op.name not in back and t.op.type not in VIEWS}
    for tensor in kept.values():
        totals["kept"] += bytes_of(tensor)
        for row in at[tensor.op.name]:
            found[row]["kept"]["bytes"] += bytes_of(tensor)
    return found, where, totals


def times(found, where, measured):
    """Adds the milliseconds that `profile.measure` found to the rows, and how many kernels they are. -> what has no row."""
    lost = 0.0
    for name, ms in measured["operations"].items():
        rows_, forward = where(name)
        lost += ms * (not rows_)
        of = dict.fromkeys(rows_, "forward") | dict.fromkeys(set(forward) - set(rows_), "gradient")
        for row, part in of.items():
            found[row]["ms"][part] += ms
            found[row]["kernels"][part] += 1
    return lost


LAYER_ROWS = {
    "conv": "model/double_conv/conv",
    "bn": "model/double_conv/bn",
    "act": "model/double_conv/activation",
    "pool": "model/forward/down/max_pool2d",
    "deconv": "model/forward/up/deconv",
    "concat": "model/forward/up/concat",
    "dropout": "model/forward/dropout",
    "head": "model/forward/head",
}
RUNG_ROWS = {
    "logits in inference": ["model/forward"],
    "logits in training": [f"{STEP}/logits"],
    "loss": [f"{STEP}/loss"],
    "gradients": [f"{STEP}/gradients"],
    "moving statistics, 1 step": ["model/double_conv/bn"],
    f"losses, {STEPS} steps": [f"{STEP}/return", LOOP],
    f"weights, {STEPS} steps": [f"{STEP}/apply"],
}


def layer_row(name):
    """The row of a layer by its canonical name, such as "up0/conv1"."""
    return LAYER_ROWS[re.sub(r"\d", "", name.split("/")[-1]).replace("bias", "bn")]


def parity(case, batches):
    """Row -> what is compared -> for each pair (largest difference, ulp, where)."""
    if case.exact:
        be_deterministic()
    images, masks = batches[0]
    values = {}
    for name in IMPLEMENTATIONS:
        seen = values[name] = collections.defaultdict(lambda: collections.defaultdict(dict))
        built = exact.build(name, case)
        for layer, array in finder.layers(built.model, case.config, images, True)[0]:
            seen[layer_row(layer)]["output, in training"][layer] = array
        for rung, arrays in ladder.observe(name, case, batches).items():
            for row in RUNG_ROWS.get(rung, ()):
                seen[row][rung] = arrays
            if rung == "gradients":
                for weight, array in arrays.items():
                    seen[layer_row(weight.rpartition("/")[0])]["gradients of its weights"][weight] = array
            if rung in ("m, 1 step", "v, 1 step"):
                optimizer = {"adam": "Adam", "sgd": "SGD"}[case.config.training.optimizer]
                seen[f"train/{optimizer}/apply/{rung[0]}"][f"{rung[0]}, after 1 step"] = arrays

    def apart(row, what):
        found = (difference(values[a][row][what], values[b][row][what]) for a, b in itertools.combinations(IMPLEMENTATIONS, 2))
        return [[float(f"{d:.2g}"), int(ulp), worst] for worst, d, ulp in found]

    return {row: {what: apart(row, what) for what in whats} for row, whats in values[IMPLEMENTATIONS[0]].items()}


def short(number):
    return float(f"{number:.3g}")


def measure(config, checkpoint=None):
    """Everything that the page shows of numbers, as one dictionary for JSON.

    checkpoint: of the network whose maps are shown, by default one that trains for a minute.

    Raises: UserError with XLA, and for a checkpoint of another network.
    """
    if config.training.jit:
        raise UserError("--jit makes one operation of a whole step: leave it out, StableHLO is measured anyway")
    config, examples, validation = load_examples(config)
    if checkpoint:
        load_checkpoint(checkpoint, config.network)
    batches = [(i.numpy(), m.numpy()) for i, m in training_batches(config, examples).take(STEPS)]
    images, masks = batches[0]
    measured, all_totals = collections.defaultdict(dict), {}
    profiles = profile.collect(config, images, masks)
    for name in IMPLEMENTATIONS:
        found, where, totals = operations(name, config, images, masks)
        timed = profiles["train", name]
        totals["ms"] = short(sum(timed["operations"].values()))
        totals["kernels"] = len(timed["operations"])
        totals["ms, without a row"] = short(times(found, where, timed))
        all_totals[name] = totals
        for row, stages in found.items():
            for stage, counter in stages.items():
                value = {kind: short(n) if stage == "ms" else n for kind, n in counter.most_common()}
                measured[row].setdefault(stage, {})[name] = value["bytes"] if stage == "kept" else value
    tiers = {"as written": Case("", config, STEPS, exact=False)}
    tiers["to the last bit"] = Case("", config.replace(**EXACT_CONSTANTS), STEPS)
    for tier, case in tiers.items():
        for row, whats in columns.call(parity, tier, case, batches).items():
            measured[row].setdefault("parity", {})[tier] = whats
    trained = maps.trained(config, examples, checkpoint)
    few = config.replace(batch_size=min(config.training.batch_size, len(validation.names)))
    drawn = maps.draw(trained, next(iter(training_batches(few, validation))))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {device_name()}",
        "versions": f"TensorFlow {tf.__version__}, Keras {keras.__version__}, Python {platform.python_version()}",
        "config": config.as_dict() | {"image": [int(n) for n in images.shape[1:]]},
        "totals": all_totals,
        "rows": dict(sorted(measured.items())),
        "watched": maps.watch(config, examples),
        "live": maps.packed(),
        **drawn,
    }

"""What does each implementation really execute? Its operations as traced, as TensorFlow optimizes them, and as StableHLO."""

import collections
import json
import math
import re
from pathlib import Path

from common.output import write_text
from common.weights import is_trainable, weight_shapes
from comparison import columns
from comparison.benchmark.roofline import convolution_flops
from comparison.proof.summary import print_summary

# The operations of StableHLO that hold the mathematics of a U-Net: convolutions and their gradients, poolings (a
# reduction over windows) and theirs (a selection and a scatter), sums and means, concatenations, activations (ELU has an
# exponential, ReLU a maximum), roots of variances. What is left is arithmetic that each API arranges in its own way.
# The order of what goes into an operation is not seen here: the numbers of `compare.py parity` see it.
MATHEMATICS = ("convolution", "reduce_window", "select_and_scatter", "reduce", "concatenate", "exponential_minus_one")
MATHEMATICS += ("maximum", "rsqrt", "logistic", "exponential")
NO_WORK = ("Const", "Placeholder", "NoOp", "_Arg", "_Retval", "_DeviceArg", "_DeviceRetval", "Identity", "IdentityN")


def statements(text):
    """[(name, statement)] of the operations in a StableHLO text, in order; one that holds a region is joined to one line."""
    found, region = [], []
    for line in text.splitlines():
        region.append(line.strip())
        if region[0].endswith("({") and not re.match(r"\}\) ?(:|\{)", region[-1]):  # the types stand behind its end
            continue
        match = re.search(r"stablehlo\.(\w+)", region[0])
        if match and match[1] not in ("constant", "return"):
            found.append((match[1], " ".join(region)))
        region = []
    return found


def operations(text):
    """[(name, signature)] of the operations in a StableHLO text, in order; the signature tells shapes, padding, strides.

    Values are named by number in the text; the signature holds none of these names, so that equal work reads equal.
    """
    found = []
    for name, signature in statements(text):
        signature = re.sub(r" loc\((?:[^()]|\([^()]*\))*\)|^%[\w:]+ = ", "", signature)  # where it was written
        found.append((name, re.sub(r"%[\w#:]+", "%", signature)))
    return found


def is_mathematics(name, signature):
    """Whether an operation is one of the network's; the same kinds on integers only work out shapes."""
    return name in MATHEMATICS and not re.search(r"-> tensor<[^>]*i\d+>$", signature)


def compare_sequences(a, b):
    """The first difference between two lists of (name, signature), in words; empty when there is none."""
    for k, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return f"number {k + 1} is {describe(x)} here and {describe(y)} there"
    return "" if len(a) == len(b) else f"{len(a)} operations here and {len(b)} there"


def describe(operation):
    """A short form of (name, signature): the name, and the types of what goes in and comes out."""
    name, signature = operation
    types = re.findall(r"tensor<([^>]*)>", signature[signature.rfind(" : ") :])
    return f"{name} {', '.join(types[:-1])} -> {types[-1]}" if types else name


def count(graphs):
    """Counter of operation types in GraphDefs and the functions in them; constants and arguments are no work."""
    nodes = [node for graph in graphs for of in (graph.node, *(f.node_def for f in graph.library.function)) for node in of]
    return collections.Counter(node.op for node in nodes if node.op not in NO_WORK)


def stages(function, *arguments):
    """(the graph as traced, the optimized graphs) of a function, which is run for this."""
    from tensorflow.python.eager import context  # no public function gives the optimized graphs

    with context.collect_graphs(optimized=True) as optimized:  # it sees a graph only when that is run first
        function(*arguments)
    return function.get_concrete_function(*arguments).graph, optimized


def stablehlo(function, *arguments):
    """The text of what goes to XLA. function: built with `jit`."""
    return function.experimental_get_compiler_ir(*arguments)(stage="stablehlo")


def collect(config, images, masks):
    """(traced, optimized, lowered): (program, implementation) -> counter of operations, the same, StableHLO text."""
    traced, optimized, lowered = {}, {}, {}
    for name in columns.IMPLEMENTATIONS:
        # StableHLO is made of what goes to XLA, the others are as it trains
        built, compiled = (columns.Built(name, config.replace(jit=jit)) for jit in (False, True))
        for program, arguments in (("forward", (images,)), ("train step", (images, masks))):
            attribute = program.replace(" ", "_")
            graph, graphs = stages(getattr(built, attribute), *arguments)
            traced[program, name], optimized[program, name] = count([graph.as_graph_def()]), count(graphs)
            lowered[program, name] = stablehlo(getattr(compiled, attribute), *arguments)
    return traced, optimized, lowered


def collect_one(implementation, config, images, masks):
    """Of one train step: (its graph as traced, its optimized graphs, the graph that goes to XLA, its StableHLO text)."""
    graph, optimized = stages(columns.Built(implementation, config.replace(jit=False)).train_step, images, masks)
    step = columns.Built(implementation, config.replace(jit=True)).train_step
    return graph, optimized, step.get_concrete_function(images, masks).graph, stablehlo(step, images, masks)


SETS = {"jit", "deterministic", "epochs"}


def add_options(parser):
    """Adds the options of `compare.py graph` to those of the configuration."""
    group = parser.add_argument_group("graph")
    group.add_argument("--save", type=Path, metavar="DIR", help="write the StableHLO texts there")


def run(config, args):
    """Prints counts side by side and the verdict for the forward pass and the train step; writes graph.json.

    Returns: whether all three do the same mathematics.
    """
    from data.loader import load_examples, training_batches

    path, save = config.training.run_dir / "graph.json", args.save
    config, training, _ = load_examples(config)
    images, masks = next(iter(training_batches(config, training)))
    traced, optimized, compiled = collect(config, images, masks)
    for (program, name), text in compiled.items() if save else ():
        write_text(save / f"{name}-{program.replace(' ', '-')}.stablehlo.txt", text)
    found = {key: operations(text) for key, text in compiled.items()}
    lowered = {key: collections.Counter(kind for kind, _ in ops) for key, ops in found.items()}

    same, record = True, {}
    for program in ("forward", "train step"):
        print(f"\n{program:<42}" + "".join(f"{name:>14}" for name in columns.IMPLEMENTATIONS))
        for stage, counters in (("traced", traced), ("optimized", optimized), ("StableHLO", lowered)):
            side_by_side = [counters[program, name] for name in columns.IMPLEMENTATIONS]
            print(f"{stage + ', operations':<42}" + "".join(f"{sum(c.values()):>14}" for c in side_by_side))
            kinds = sorted(set().union(*side_by_side), key=lambda kind: -max(c[kind] for c in side_by_side))
            shown = [
                k
                for k in kinds
                if len({c[k] for c in side_by_side}) > 1 or k in MATHEMATICS or k.startswith(("Conv2D", "MaxPool"))
            ]
            for kind in shown:
                print(f"    {kind:<38}" + "".join(f"{c[kind]:>14}" for c in side_by_side))
            record[f"{program}, {stage}"] = {name: counters[program, name] for name in columns.IMPLEMENTATIONS}
        reference, *others = columns.IMPLEMENTATIONS
        mathematics = {name: [o for o in found[program, name] if is_mathematics(*o)] for name in columns.IMPLEMENTATIONS}
        for name in others:
            words = compare_sequences(mathematics[reference], mathematics[name])
            verdict = f"DIFFERENT: {words}" if words else "the same mathematics"
            ours, theirs = (collections.Counter(mathematics[column]) for column in (reference, name))
            more = theirs - ours
            # tf.gradients walks back in another order than a tape, and also to numbers that nobody asks for, which it sums up;
            # what feeds what, the numbers of `compare.py parity` see
            if words and not ours - theirs and {kind for kind, _ in more} <= {"reduce"}:
                words, verdict = "", "the same mathematics, in another order"
                verdict += "".join(f", and {describe(operation)}" for operation in more)
            same &= not words
            record[f"{program}, {reference} - {name}"] = verdict
            n = len(mathematics[reference])
            print(f"{n} convolutions, reductions, poolings and so on, {reference} - {name}: {verdict}")
    height, width = images.shape[1:3]
    print_summary(config, (height, width))
    parameters = sum(math.prod(s) for n, s in weight_shapes(config.network).items() if is_trainable(n))
    print(f"\n{parameters:,} trainable parameters", end="")
    record["parameters"] = parameters
    forward, training_flops = convolution_flops(config.network, height, width)
    gflop = f"{forward / 1e9:.3f} GFLOP of convolutions forward, {training_flops / 1e9:.3f} in training"
    print(f"; for an image of {width}x{height} {gflop}", end="")
    record.update(forward_flops=forward, training_flops=training_flops)
    write_text(path, json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {path}" + (f"; the StableHLO texts to {save}/" if save else ""))
    return same

"""What does each implementation really execute? Its operations as traced, as TensorFlow optimizes them, and as StableHLO."""

import collections
import math
import re
from pathlib import Path

from common.layers import table
from common.output import write_json, write_text
from common.shapes import margin
from common.weights import is_trainable
from comparison import columns
from comparison.benchmark.roofline import convolution_flops

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


def collect_one(implementation, config, *arguments):
    """(its graph as traced, its optimized graphs, the graph that goes to XLA, its StableHLO text) of one program.

    arguments: (images, masks) for the train step, (images,) for the forward pass; they are run for this.
    """
    from tensorflow.python.eager import context  # no public function gives the optimized graphs

    program = "train_step" if len(arguments) == 2 else "forward"
    # StableHLO is made of what goes to XLA, the others are as it trains
    traced, compiled = (getattr(columns.Built(implementation, config.replace(jit=jit)), program) for jit in (False, True))
    with context.collect_graphs(optimized=True) as optimized:  # it sees a graph only when that is run first
        traced(*arguments)
    graph, to_xla = (function.get_concrete_function(*arguments).graph for function in (traced, compiled))
    return graph, optimized, to_xla, compiled.experimental_get_compiler_ir(*arguments)(stage="stablehlo")


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

    path = config.training.run_dir / "graph.json"
    config, training, _ = load_examples(config)
    images, masks = next(iter(training_batches(config, training)))
    same, record = True, {}
    for program, arguments in (("forward", (images,)), ("train step", (images, masks))):
        counts, mathematics = {"traced": {}, "optimized": {}, "StableHLO": {}}, {}
        for name in columns.IMPLEMENTATIONS:
            graph, optimized, _, text = collect_one(name, config, *arguments)
            if args.save:
                write_text(args.save / f"{name}-{program.replace(' ', '-')}.stablehlo.txt", text)
            found = operations(text)
            counts["traced"][name], counts["optimized"][name] = count([graph.as_graph_def()]), count(optimized)
            counts["StableHLO"][name] = collections.Counter(kind for kind, _ in found)
            mathematics[name] = [operation for operation in found if is_mathematics(*operation)]
        print(f"\n{program:<42}" + "".join(f"{name:>14}" for name in columns.IMPLEMENTATIONS))
        for stage, of_column in counts.items():
            print_counts(stage, [*of_column.values()])
            record[f"{program}, {stage}"] = of_column
        reference, *others = columns.IMPLEMENTATIONS
        for name in others:
            is_same, verdict = judge(mathematics[reference], mathematics[name])
            same &= is_same
            record[f"{program}, {reference} - {name}"] = verdict
            n = len(mathematics[reference])
            print(f"{n} convolutions, reductions, poolings and so on, {reference} - {name}: {verdict}")
    record |= print_sizes(config, tuple(images.shape[1:3]))
    write_json(path, record)
    print(f"written to {path}" + (f"; the StableHLO texts to {args.save}/" if args.save else ""))
    return same


def print_counts(stage, counters):
    """A row for each kind of operation of which the columns have another number, or that is mathematics."""
    print(f"{stage + ', operations':<42}" + "".join(f"{counter.total():>14}" for counter in counters))
    for kind in sorted(set().union(*counters), key=lambda kind: -max(counter[kind] for counter in counters)):
        found = [counter[kind] for counter in counters]
        if len(set(found)) > 1 or kind.startswith((*MATHEMATICS, "Conv2D", "MaxPool")):
            print(f"    {kind:<38}" + "".join(f"{n:>14}" for n in found))


def judge(mathematics, others):
    """-> (whether two lists of operations are the same mathematics, the verdict in words)"""
    words = compare_sequences(mathematics, others)
    ours, theirs = collections.Counter(mathematics), collections.Counter(others)
    # tf.gradients walks back in another order than a tape, and also to numbers that nobody asks for, which it sums up;
    # what feeds what, the numbers of `compare.py parity` see
    if words and not ours - theirs and {kind for kind, _ in theirs - ours} <= {"reduce"}:
        more = "".join(f", and {describe(operation)}" for operation in theirs - ours)
        return True, f"the same mathematics, in another order{more}"
    return not words, f"DIFFERENT: {words}" if words else "the same mathematics"


def layers(config, size):
    """[(name, (height, width, channels), trainable parameters)] of every layer for an image of `size`, in order.

    config: with `channels` and `classes`. size: (height, width), at least `shapes.min_size`. The image and the logits have
    their own sizes, the layers between those of the padded image; activation functions, which change no shape, are left out.
    """
    network = config.network
    logits = (*(n - margin(network.depth, network.padding) for n in size), network.classes)
    found = [("image", (*size, network.channels), 0)]
    for layer in table(network, size):
        if layer.kind != "act":
            trainable = (shape for part, shape in layer.weights.items() if is_trainable(f"{layer.name}/{part}"))
            found.append((layer.name, logits if layer.name == "head" else layer.outputs, sum(map(math.prod, trainable))))
    return found


def print_sizes(config, size):
    """Prints the network as a table, read off the configuration, for an image of `size`, (height, width). -> for JSON"""
    found = layers(config, size)
    print(f"\n{'layer':<16}{'height':>8}{'width':>8}{'channels':>10}{'parameters':>14}")
    for name, (height, width, channels), parameters in found:
        print(f"{name:<16}{height:>8}{width:>8}{channels:>10}{parameters or '':>14}")
    total, (forward, training) = sum(parameters for *_, parameters in found), convolution_flops(config.network, *size)
    gflop = f"{forward / 1e9:.3f} GFLOP of convolutions forward, {training / 1e9:.3f} in training"
    print(f"\n{total:,} trainable parameters; for an image of {size[1]}x{size[0]} {gflop}")
    return dict(parameters=total, forward_flops=forward, training_flops=training)

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

# The operations of StableHLO that hold the mathematics of a U-Net: convolutions and their gradients, poolings (a
# reduction over windows) and theirs (a selection and a scatter), sums and means, concatenations, activations (ELU has an
# exponential, ReLU a maximum), roots of variances. What is left is arithmetic that each API arranges in its own way.
# The order of what goes into an operation is not seen here: the numbers of `compare.py parity` see it.
MATHEMATICS = ("convolution", "reduce_window", "select_and_scatter", "reduce", "concatenate", "exponential_minus_one")
MATHEMATICS += ("maximum", "rsqrt", "logistic", "exponential")


def operations(text):
    """[(name, signature)] of the operations in a StableHLO text, in order; the signature tells shapes, padding, strides.

    Values are named by number in the text; the signature holds none of these names, so that equal work reads equal.
    """
    found = []
    lines = iter(text.splitlines())
    for line in lines:
        match = re.search(r'"?stablehlo\.(\w+)"?', line)
        if not match:
            continue
        if line.rstrip().endswith("({"):  # a region follows: the types stand behind its end
            region = [line]
            for line in lines:
                region.append(line)
                if re.match(r"\s*\}\) ?(:|\{)", line):
                    break
            line = " ".join(part.strip() for part in region)
        signature = re.sub(r"%[\w#:]+", "%", line.strip())
        signature = re.sub(r"\s+loc\(.*\)$|^% = ", "", signature)
        if match[1] not in ("constant", "return"):
            found.append((match[1], signature))
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


def add_options(parser):
    """Adds the options of `compare.py graph` to those of the configuration."""
    group = parser.add_argument_group("graph")
    group.add_argument("--save", type=Path, metavar="DIR", help="write the StableHLO texts there")


def run(config, args):
    """Prints counts side by side and the verdict for the forward pass and the train step; writes graph.json.

    Returns: whether all three do the same mathematics.
    """
    from comparison.proof import programs
    from data.loader import load_examples, training_batches

    path, save = config.training.run_dir / "graph.json", args.save
    config, training, _ = load_examples(config)
    images, masks = next(iter(training_batches(config, training)))
    traced, optimized, compiled = programs.collect(config, images, masks)
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
    parameters = sum(math.prod(s) for n, s in weight_shapes(config.network).items() if is_trainable(n))
    print(f"\n{parameters:,} trainable parameters", end="")
    record["parameters"] = parameters
    height, width = images.shape[1:3]
    forward, training_flops = convolution_flops(config.network, height, width)
    gflop = f"{forward / 1e9:.3f} GFLOP of convolutions forward, {training_flops / 1e9:.3f} in training"
    print(f"; for an image of {width}x{height} {gflop}", end="")
    record.update(forward_flops=forward, training_flops=training_flops)
    write_text(path, json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {path}" + (f"; the StableHLO texts to {save}/" if save else ""))
    return same

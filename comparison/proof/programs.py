"""The programs of the three: what TensorFlow traces, what its graph optimizer makes of that, and what goes to XLA."""

import collections

from common.device import tf  # noqa: F401  before what is imported from it below
from comparison import columns
from comparison.benchmark import worker

# isort: split
from tensorflow.python.eager import context  # for the optimized graphs, which no public function gives


def programs(implementation, config):
    """{"forward": function of images, "train step": function of images and masks}, for one implementation."""
    code = columns.load(implementation)
    model = code.UNet(config.network)
    optimizer = code.make_optimizer(model, config)
    return {"forward": worker.forward(model, config), "train step": code.make_train_step(model, config, optimizer)}


def count(graphs):
    """Counter of operation types in GraphDefs and the functions in them; constants and arguments are no work."""
    counter = collections.Counter()
    for graph in graphs:
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            counter.update(node.op for node in nodes)
    for kind in ("Const", "Placeholder", "NoOp", "_Arg", "_Retval", "_DeviceArg", "_DeviceRetval", "Identity", "IdentityN"):
        counter.pop(kind, None)
    return counter


def stages(function, *arguments):
    """(the graph as traced, the optimized graphs) of a function that is run for this."""
    with context.collect_graphs(optimized=True) as optimized:  # it sees a graph only when that is run first
        function(*arguments)
    return function.get_concrete_function(*arguments).graph, optimized


def stablehlo(function, *arguments):
    """The text of what goes to XLA. function: one that is compiled, with `jit`."""
    return function.experimental_get_compiler_ir(*arguments)(stage="stablehlo")


def collect(config, images, masks):
    """(traced, optimized, lowered): (program, implementation) -> counter of operations, the same, StableHLO text."""
    traced, optimized, lowered = {}, {}, {}
    for name in columns.IMPLEMENTATIONS:
        compiled = programs(name, config.replace(jit=True))  # StableHLO is made of what goes to XLA, the others as it trains
        for program, function in programs(name, config.replace(jit=False)).items():
            arguments = (images,) if program == "forward" else (images, masks)
            graph, graphs = stages(function, *arguments)
            traced[program, name], optimized[program, name] = count([graph.as_graph_def()]), count(graphs)
            lowered[program, name] = stablehlo(compiled[program], *arguments)
    return traced, optimized, lowered


def collect_one(implementation, config, images, masks):
    """Of one train step: (its graph as traced, its optimized graphs, the graph that goes to XLA, its StableHLO text)."""
    graph, optimized = stages(programs(implementation, config.replace(jit=False))["train step"], images, masks)
    compiled = programs(implementation, config.replace(jit=True))["train step"]
    return graph, optimized, compiled.get_concrete_function(images, masks).graph, stablehlo(compiled, images, masks)

"""The programs of the three: what TensorFlow traces, what its graph optimizer makes of that, and what goes to XLA."""

import collections

import comparison
from common.device import tf

# isort: split
from tensorflow.python.eager import context  # for the optimized graphs, which no public function gives


def programs(implementation, config):
    """{"forward": function of images, "train step": function of images and masks}, for one implementation."""
    code = comparison.load(implementation)
    model = code.UNet(config.network)

    @tf.function(jit_compile=config.training.jit)
    def forward(images):
        return model(images, training=False)

    return {"forward": forward, "train step": code.make_train_step(model, config)}


def count(graphs):
    """Counter of operation types in GraphDefs and the functions in them; constants and arguments are no work."""
    counter = collections.Counter()
    for graph in graphs:
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            counter.update(node.op for node in nodes)
    for kind in ("Const", "Placeholder", "NoOp", "_Arg", "_Retval", "_DeviceArg", "_DeviceRetval", "Identity", "IdentityN"):
        counter.pop(kind, None)
    return counter


def collect(config, images, masks):
    """(traced, optimized, texts): (program, implementation) -> counter of operations, the same, StableHLO text."""
    traced, optimized, texts = {}, {}, {}
    for name in comparison.IMPLEMENTATIONS:
        # as it trains, for the first two; StableHLO is made of what goes to XLA
        for program, function in programs(name, config.replace(jit=False)).items():
            arguments = (images,) if program == "forward" else (images, masks)
            with context.collect_graphs(optimized=True) as graphs:  # it sees a graph only when that is run first
                function(*arguments)
            traced[program, name] = count([function.get_concrete_function(*arguments).graph.as_graph_def()])
            optimized[program, name] = count(graphs)
        for program, function in programs(name, config.replace(jit=True)).items():
            arguments = (images,) if program == "forward" else (images, masks)
            function.get_concrete_function(*arguments)
            texts[program, name] = function.experimental_get_compiler_ir(*arguments)(stage="stablehlo")
    return traced, optimized, texts


def collect_one(implementation, config, images, masks):
    """Of one train step: (its graph as traced, its optimized graphs, the graph that goes to XLA, its StableHLO text)."""
    arguments = images, masks
    step = programs(implementation, config.replace(jit=False))["train step"]
    with context.collect_graphs(optimized=True) as optimized:
        step(*arguments)
    compiled = programs(implementation, config.replace(jit=True))["train step"]
    graph = compiled.get_concrete_function(*arguments).graph
    text = compiled.experimental_get_compiler_ir(*arguments)(stage="stablehlo")
    return step.get_concrete_function(*arguments).graph, optimized, graph, text

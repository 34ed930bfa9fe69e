"""The programs of the three: what TensorFlow traces, what its graph optimizer makes of that, and what goes to XLA."""

import collections
import gzip
import json
import os
import re
from typing import Any, NamedTuple

import comparison
from common.config import Config
from common.device import tf
from common.output import discard, replacing, write_text
from comparison import rounding, worker
from comparison.roofline import convolution_flops

import numpy as np

# isort: split
from tensorflow.python.eager import context  # for the optimized graphs, which no public function gives

DRAWS = 3  # of random directions: a few numbers, such as a bias, may part little by chance


def programs(implementation, config):
    """{"forward": function of images, "train step": function of images and masks}, for one implementation."""
    return named_programs(implementation, config)[0]


def named_programs(implementation, config):
    """(`programs`, canonical name -> variable that they read or write)."""
    code = comparison.load(implementation)
    model = code.UNet(config.network)
    optimizer = code.make_optimizer(model, config)
    forward, step = worker.forward(model, config), code.make_train_step(model, config, optimizer)
    return {"forward": forward, "train step": step}, {**code.named_weights(model), **code.named_state(model, optimizer)}


class Lowered(NamedTuple):
    """A program as it goes to XLA, with what it takes to run it elsewhere.

    The parameters of the text are the arguments, then the captured variables, in their order; its results are what the function
    returns, then the variables that it has updated, which the text says may lie where the parameter lay ("may_alias").
    """

    implementation: str
    program: str
    config: Config
    function: Any
    arguments: tuple  # tensors or `tf.TensorSpec`
    text: str
    names: list  # of the parameters
    variables: list
    results: list  # their names
    updated: dict  # number of a result -> number of the parameter that it takes the place of

    def compute(self, values):
        """The results, arrays in float32 or wider, for the `values` of all parameters."""
        n = len(self.arguments)
        for variable, value in zip(self.variables, values[n:], strict=True):
            variable.assign(value)
        found = [self.function(*map(tf.constant, values[:n]))]
        found += [self.variables[number - n] for number in self.updated.values()]
        return [np.asarray(tf.cast(x, tf.float32) if x.dtype == tf.bfloat16 else x) for x in found]

    def numbers(self):
        """(values of the parameters, results, {arithmetic -> how far off rounding may carry each result}).

        The same reasoning as in `rounding.explained`, but with the program itself: it runs on values that are off by the
        rounding of a sum in random directions, and on values that are as much off the other way, `DRAWS` times. That does not
        show how far off a sum is that cancels, as a bias's gradient before a normalization: so all kernels, all m, all v... are
        allowed the same share of their largest value, the widest that one of them needs.
        """
        values, precision = [np.asarray(x) for x in (*self.arguments, *self.variables)], self.config.network.precision
        rng, bounds = np.random.default_rng(0), {}
        for arithmetic in ("float32", "tf32") if precision == "float32" else (precision,):
            unit, found = rounding.of_a_sum(arithmetic), []
            for _ in range(DRAWS):
                off = [rng.choice([-unit, unit], x.shape) if x.ndim and n != "masks" else 0 for n, x in zip(self.names, values)]
                ahead, behind = (
                    self.compute([(x * (1 + way * share)).astype(x.dtype) for x, share in zip(values, off)]) for way in (1, -1)
                )
                found.append([rounding.bound(x, y, unit) for x, y in zip(ahead, behind)])
            bounds[arithmetic] = np.max(found, axis=0)
        results = self.compute(values)
        largest = np.array([np.abs(x).max(initial=0) or 1 for x in results])
        kinds = np.array([name.rpartition("/")[2] for name in self.results])
        for arithmetic, bound in bounds.items():
            share = bound / largest
            bounds[arithmetic] = [max(share[kinds == kind]) * most for kind, most in zip(kinds, largest)]
        for variable, value in zip(self.variables, values[len(self.arguments) :]):
            variable.assign(value)  # it has been trained meanwhile
        return values, results, bounds

    def save(self, folder, numbers):
        """Writes the text, and a .json of what `comparison/pjrt.py` has to know of it.

        numbers: an .npz too, with the values of all parameters and TensorFlow's results on this machine; else the text is
        packed, and the values are to be drawn.
        """
        name = f"{self.implementation}-{self.program.replace(' ', '-')}"
        shapes = [(list(x.shape), x.dtype.name) for x in (*self.arguments, *self.variables)]
        batch_size, height, width, _ = shapes[0][0]
        flops = convolution_flops(self.config.network, height, width)[self.program == "train step"]
        about = dict(implementation=self.implementation, program=self.program, precision=self.config.network.precision)
        about |= dict(batch_size=batch_size, height=height, width=width, flops=batch_size * flops)
        about |= dict(network=vars(self.config.network), flags=os.environ.get("XLA_FLAGS", ""))
        about["versions"] = {"tensorflow": tf.__version__, "numpy": np.__version__}
        about["parameters"] = [dict(name=n, shape=s, dtype=d) for n, (s, d) in zip(self.names, shapes)]
        for parameter, variable in zip(about["parameters"][len(self.arguments) :], self.variables):
            if not variable.shape.rank:
                parameter["value"] = variable.numpy().item()
        about |= dict(results=self.results, updated=list(self.updated.items()))
        if "stablehlo.rng" in self.text:
            print(f"{name}: it draws random numbers, which another runtime draws otherwise, so its results are not written")
            numbers = False
        for earlier in (".stablehlo.txt", ".stablehlo.txt.gz", ".npz"):  # of another form
            discard(folder / f"{name}{earlier}")
        if numbers:
            values, results, about["tolerances"] = self.numbers()
            arrays = {f"in/{n}": x for n, x in zip(self.names, values)}
            with replacing(folder / f"{name}.npz") as part:
                np.savez_compressed(part, **arrays, **{f"out/{n}": x for n, x in zip(self.results, results)})
            write_text(folder / f"{name}.stablehlo.txt", self.text)
        else:
            with replacing(folder / f"{name}.stablehlo.txt.gz") as part:
                part.write_bytes(gzip.compress(self.text.encode(), mtime=0))
        write_text(folder / f"{name}.json", json.dumps(about, indent=1) + "\n")


def lower(implementation, config, images, masks):
    """{program: `Lowered`} of one implementation. images, masks: a batch, or `tf.TensorSpec`s of one."""
    functions, named = named_programs(implementation, config.replace(jit=True))
    lowered = {}
    for program, function in functions.items():
        arguments = (images,) if program == "forward" else (images, masks)
        concrete = function.get_concrete_function(*arguments)
        text = function.experimental_get_compiler_ir(*arguments)(stage="stablehlo")
        # what has no canonical name is the learning rate; v1's moments are not among the graph's variables
        known = {id(v.handle): (v.name.partition(":")[0].rpartition("/")[2], v) for v in concrete.graph.variables}
        known |= {id(variable.handle): (name, variable) for name, variable in named.items()}
        names, variables = zip(*(known[id(handle)] for handle in concrete.captured_inputs))
        parameters = [*("images", "masks")[: len(arguments)], *names]
        signature = re.search(r"func\.func (?:public )?@main\((.*?)\) -> ", text)[1]
        if signature.count("%arg") != len(parameters) or len(set(parameters)) < len(parameters):
            raise RuntimeError(f"{implementation}, {program}: {signature.count('%arg')} parameters for {parameters}")
        aliases = re.findall(r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>", text)
        updated = {int(result): int(parameter) for parameter, result in aliases}
        results = ["logits" if program == "forward" else "loss", *(parameters[k] for k in updated.values())]
        if [*updated] != [*range(1, len(results))]:
            raise RuntimeError(
                f"{implementation}, {program}: the results are not what is returned and what is updated: {updated}"
            )
        found = implementation, program, config, function, arguments, text, parameters, variables, results, updated
        lowered[program] = Lowered(*found)
    return lowered


def save(lowered, folder, numbers=True):
    """Writes the programs of one implementation, see `lower` and `Lowered.save`."""
    if numbers:  # a step ahead, so that neither moments nor moving statistics are those that every training starts with
        lowered["train step"].function(*lowered["train step"].arguments)
    for program in lowered.values():
        program.save(folder, numbers)


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
    """(traced, optimized): (program, implementation) -> counter of operations; and lowered: implementation -> see `lower`."""
    traced, optimized, lowered = {}, {}, {}
    for name in comparison.IMPLEMENTATIONS:
        # as it trains, for the first two; StableHLO is made of what goes to XLA
        for program, function in programs(name, config.replace(jit=False)).items():
            arguments = (images,) if program == "forward" else (images, masks)
            with context.collect_graphs(optimized=True) as graphs:  # it sees a graph only when that is run first
                function(*arguments)
            traced[program, name] = count([function.get_concrete_function(*arguments).graph.as_graph_def()])
            optimized[program, name] = count(graphs)
        lowered[name] = lower(name, config, images, masks)
    return traced, optimized, lowered


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

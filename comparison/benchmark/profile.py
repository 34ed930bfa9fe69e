"""Where does the time of a step go? Its operations by kind, as TensorFlow's profiler times them, side by side."""

import collections
import re
import tempfile
from pathlib import Path

from common.config import UserError
from common.device import be_deterministic, on_gpu, tf
from common.output import write_json
from comparison import columns
from comparison.benchmark.roofline import MODES
from comparison.benchmark.worker import load_batch
from comparison.machine import arithmetic, described

from tensorflow.tsl.profiler.protobuf import xplane_pb2  # the profiler's file format; TensorFlow's own wheel brings it
from tqdm import tqdm

WARM_UP, STEPS = 4, 10
WINDOW = "profiled steps"
WAITING = "Python and waiting"

# kind and pattern of "scopes/name:Type", the type without the prefixes of oneDNN and of fused kernels; the first one found
# counts. The scopes "loss" and "optimizer" are the project's own, "gradient_tape" is TensorFlow's for what a tape adds.
KINDS = (
    ("loss", r"(^|/)loss(_\d+)?/"),
    ("optimizer", r"(^|/)optimizer(_\d+)?/"),
    ("convolution, filter gradient", r":Conv2DBackpropFilter"),
    # the gradient of a transposed convolution is a plain one, and its forward pass the gradient of a plain one
    ("convolution, input gradient", r"(gradient_tape|gradients(_\d+)?)/.*:(Conv2D|DepthwiseConv2d)"),
    ("convolution, forward", r":(Conv2D|DepthwiseConv2d)"),
    ("activation", r":(Elu|Relu)"),
    ("pooling", r":MaxPool"),
    ("bias", r":BiasAdd|/head(_\d+)?/.*:(AddV2|Sum|BroadcastGradientArgs)$"),
    ("sums of gradients", r":AddN$"),
    ("dropout", r"dropout(_\d+)?/"),
    ("concatenation, slices, casts", r":(Cast|Concat|Slice|StridedSlice|Pad|MirrorPad|Transpose)|^Mem(cpy|set)"),
    ("rest", r":(ReadVariableOp|Const|NoOp|Identity|Shape)"),  # named by what they serve, but no part of its work
    ("batch normalization", r":FusedBatchNorm|(^|[/_])(bn\d|moments|batchnorm)(_\d+)?/"),
    # what moves the statistics has no scope in lowlevel; nothing else in the network calculates outside of the kinds above
    ("batch normalization", r":(Mul|Sub|AddV2|AssignVariableOp|AssignSubVariableOp)$"),
    ("rest", r""),
)
# convolutions, the rest of the layers, what moves data, what is not the network, nothing
ROWS = ("convolution, forward", "convolution, input gradient", "convolution, filter gradient")
ROWS += ("batch normalization", "activation", "pooling", "bias", "dropout")
ROWS += ("concatenation, slices, casts", "sums of gradients", "loss", "optimizer", "rest", WAITING)


def kind(operation):
    """The row that an operation "scopes/name:Type" belongs to."""
    operation = re.sub(r":_?(MklNative|Mkl)?_?(Fused(?!BatchNorm))?", ":", operation)
    return next(row for row, pattern in KINDS if re.search(pattern, operation))


def is_operation(name):
    """Whether an event of the profiler is an operation and not what holds operations, such as `ExecutorState::Process`."""
    return re.fullmatch(r"[\w.<>/-]+:(?!\w*(PartitionedCall|While|If|Case)$)\w+", name) is not None


def events(plane):
    """For each thread or stream of a plane: [(begin, end, name)] in picoseconds, what holds others before what it holds."""
    # A GPU's plane holds kernels, and their operation in the stat "tf_op"; lines other than streams repeat them in groups.
    # Written after TensorFlow's cupti_collector.cc, and tried on a hand-made file only.
    gpu = plane.name.startswith("/device:GPU")
    for line in plane.lines:
        if gpu and not line.name.startswith("Stream"):
            continue
        found = []
        for event in line.events:
            name = plane.event_metadata[event.metadata_id].name
            for stat in event.stats if gpu else ():
                if plane.stat_metadata[stat.metadata_id].name == "tf_op":
                    name = stat.str_value or plane.stat_metadata[stat.ref_value].name
            begin = 1000 * line.timestamp_ns + event.offset_ps
            found.append((begin, begin + event.duration_ps, name))
        yield sorted(found, key=lambda event: (event[0], -event[1]))


def gpu_planes(space):
    return [plane for plane in space.planes if plane.name.startswith("/device:GPU") and plane.lines]


def union(intervals):
    """The length of what (begin, end) intervals cover together."""
    total, reached = 0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def measure(space, steps):
    """What an `XSpace` says about `steps` steps under the trace `WINDOW`.

    Returns: {"wall": ms of a step, "busy": ms of it in which any operation ran, "operations": {name: ms of a step}}. An
    operation that another calls on its own thread counts for itself and not for its caller. Operations on several threads
    overlap: their sum may be longer than the step.
    """
    host = next(plane for plane in space.planes if plane.name == "/host:CPU")
    begin, end = next((b, e) for line in events(host) for b, e, name in line if name == WINDOW)
    gpus = gpu_planes(space)
    operations, busy = collections.Counter(), []
    for plane in gpus or [host]:
        for line in events(plane):
            callers = []  # the operations that are under way: (end, name)
            for b, e, name in line:
                if not begin <= b < end or not (gpus or is_operation(name)):
                    continue
                while callers and callers[-1][0] <= b:
                    callers.pop()
                if callers:
                    operations[callers[-1][1]] -= e - b
                operations[name] += e - b
                callers.append((e, name))
                busy.append((b, min(e, end)))
    ms = 1e9 * steps
    return {
        "wall": (end - begin) / ms,
        "busy": union(busy) / ms,
        "operations": {name: time / ms for name, time in operations.most_common()},
    }


def add_up(measured):
    """{row: ms} of what `measure` returns."""
    rows = dict.fromkeys(ROWS, 0.0)
    for operation, ms in measured["operations"].items():
        rows[kind(operation)] += ms
    rows[WAITING] = measured["wall"] - measured["busy"]
    return rows


def profile(step, steps):
    """`XSpace` of so many calls of `step`, warmed up."""
    for _ in range(WARM_UP):
        step()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            step()  # the first one waits for the profiler to start
            tf.test.experimental.sync_devices()
            with tf.profiler.experimental.Trace(WINDOW):
                for _ in range(steps):
                    step()
                tf.test.experimental.sync_devices()
        (file,) = Path(folder).glob("**/*.xplane.pb")
        return xplane_pb2.XSpace.FromString(file.read_bytes())


def work(implementation, config, images, masks, steps):
    """mode -> what `measure` returns. In a process of its own, which holds the profiler."""
    if config.training.deterministic:
        be_deterministic()
    built, images, masks = columns.Built(implementation, config), tf.constant(images), tf.constant(masks)
    measured = {}
    for mode, step in (("train", lambda: built.train_step(images, masks)), ("infer", lambda: built.forward(images))):
        space = profile(step, steps)
        if on_gpu() and not gpu_planes(space):  # what is left is the CPU handing work over
            advice = "its driver lets others than root profile when NVreg_RestrictProfilingToAdminUsers is 0"
            raise UserError(f"the profiler does not see the GPU: {advice}")
        measured[mode] = measure(space, steps)
    return measured


def collect(config, images, masks, steps=STEPS):
    """(mode, implementation) -> what `measure` returns. One process after the other, so that no two meet."""
    measured = {}
    for name in tqdm(columns.IMPLEMENTATIONS, desc="profile", leave=False, disable=None):
        found = columns.call(work, name, name, config, images, masks, steps)
        measured |= {(mode, name): of_mode for mode, of_mode in found.items()}
    return measured


def print_table(mode, columns):
    """columns: implementation -> what `measure` returns."""
    rows = [add_up(measured) for measured in columns.values()]
    sums, walls = [sum(of.values()) for of in rows], [measured["wall"] for measured in columns.values()]
    print(f"\n{MODES[mode]:<32}" + "".join(f"{name:>20}" for name in columns))
    print(f"{'':<32}" + f"{'ms':>12}{'%':>8}" * len(columns))
    for row in ROWS:
        if any(of[row] for of in rows):
            print(f"{row:<32}" + "".join(f"{of[row]:>12.2f}{100 * of[row] / whole:>8.1f}" for of, whole in zip(rows, sums)))
    print(f"{'sum':<32}" + "".join(f"{whole:>12.2f}{100:>8.1f}" for whole in sums))
    print(f"{'wall time of the step':<32}" + "".join(f"{wall:>12.2f}{'':>8}" for wall in walls))


def run(config, steps, path):
    """Profiles, prints a table for training and one for inference, writes JSON to `path`.

    Raises: UserError with XLA, whose steps hold no operations to tell apart.
    """
    if config.training.jit:
        raise UserError("--profile tells operations apart, and --jit makes one of them all: leave one of the two out")
    batch, norm = config.training.batch_size, config.network.batch_norm
    what = f"{described(config)}, batch {batch}, {arithmetic(config)}, batch_norm {norm}"
    print(what, flush=True)
    measured = collect(*load_batch(config), steps)
    for mode in ("train", "infer"):
        print_table(mode, {name: measured[mode, name] for name in columns.IMPLEMENTATIONS})
    print("\nms of a step under the profiler, summed over the threads, which overlap: the sum may be longer than the step.")
    print(f"%: of that sum. {WAITING}: when no thread ran an operation. A row without a named gradient holds its")
    print("gradient too. In inference TensorFlow's graph optimizer fuses most of what follows a convolution into it.")
    records = [
        {"mode": mode, "implementation": name, "wall_ms": of["wall"], "rows_ms": add_up(of), "operations_ms": of["operations"]}
        for (mode, name), of in measured.items()
    ]
    write_json(path, {"what": what, "steps": steps, "records": records})
    print(f"\nmeans of {steps} steps; written to {path}")

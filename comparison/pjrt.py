"""Runs the programs that `compare.py graph --save DIR` wrote through any PJRT runtime, by JAX: no TensorFlow is needed for it.

    python -m comparison.pjrt DIR             the same numbers as TensorFlow's, from another compiler and on another device?
    python -m comparison.pjrt DIR --time      and images per second, beside the share of what a matrix product reaches
    python -m comparison.pjrt DIR --prepare   writes small programs with numbers, and large ones to be timed; with TensorFlow

Exit code 1 when a result is further off than rounding explains. JAX: pip install jax, or "jax[cuda13]" for an NVIDIA GPU.
"""

import concurrent.futures
import contextlib
import gzip
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path

import comparison
from common.cli import Parser, count, run_script
from common.config import UserError
from common.output import refuse_foreign, write_text

import numpy as np

# batch and pixels of what is timed, in this order
SIZES = ((64, 128), (64, 256), (256, 128), (8, 128), (8, 512), (64, 512), (256, 256))
SMALL = dict(filters=8, depth=2, image_size="64", batch_size=4)
LARGE = dict(channels=1, classes=1)  # and the defaults
KEYS = dict(parameters=list, results=list, updated=list, implementation=str, program=str, precision=str, network=dict)
KEYS |= dict(batch_size=int, height=int, width=int)  # of a program's .json, and what they are
SECONDS = 1.0  # that the steps of a measurement take at least, if there are not 50 before


def load_jax():
    """Raises: UserError when there is none."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer is on the same GPU
    try:
        import jax
        import jax.extend.backend  # noqa: F401
    except ImportError as error:
        raise UserError(f'comparison.pjrt needs JAX ({error}): pip install jax, or "jax[cuda13]" for an NVIDIA GPU') from None
    jax.config.update("jax_enable_x64", True)  # or the number of steps would lose its 64 bits
    return jax


def find_programs(folder):
    """[what the .json of a program says, and its `path`], the folders in order. Raises: UserError when there is none."""
    found = []
    for path in sorted(folder.rglob("*.json")):
        about = None
        with contextlib.suppress(ValueError, RecursionError):  # the file of someone else
            about = json.loads(path.read_text()) if path.is_file() else None
        if isinstance(about, dict) and {"parameters", "results", "updated"} <= about.keys():
            if not (about.keys() >= KEYS.keys() and all(isinstance(about[key], kind) for key, kind in KEYS.items())):
                raise UserError(f"{path} was changed: write it again with `compare.py graph --save {folder}`")
            found.append(about | {"path": path})
    if not found:
        raise UserError(f"there are no programs in {folder}: write them with `compare.py graph --save {folder}`")
    return found


def read_text(program, arithmetic):
    """The StableHLO of a program, such that it is StableHLO alone, as the plugins of PJRT want it.

    Copies at the end, of XLA's dialect mhlo, are left out, and what may lie in the memory of a parameter is said in JAX's way
    instead of mhlo's. On a GPU XLA takes DEFAULT for TF32 where numbers are float32; elsewhere it says nothing.
    """
    plain = program["path"].with_suffix(".stablehlo.txt")
    packed = plain.with_suffix(".txt.gz")
    text = plain.read_text() if plain.exists() else gzip.decompress(packed.read_bytes()).decode()
    copies = dict(re.findall(r"(%\d+) = mhlo\.copy (%\d+) ", text))
    text = re.sub(r"(?m)^.* = mhlo\.copy .*\n", "", text)
    text = re.sub(r"%\d+\b", lambda name: copies.get(name[0], name[0]), text)
    text = re.sub(r"(?m)^(module \S+) attributes \{.*\} \{", r"\1 {", text, count=1)
    for result, parameter in program["updated"]:
        alias = f" {{tf.aliasing_output = {result} : i32}}"
        text = re.sub(rf"(@main\(.*?%arg{parameter}: tensor<[^>]*>)", rf"\1{alias}", text, count=1)
    return text.replace("<precision DEFAULT>", "<precision HIGHEST>") if arithmetic == "float32" else text


class Runtime:
    """JAX's default device."""

    def __init__(self):
        self.jax = load_jax()
        self.device = self.jax.local_devices()[0]
        self.client = self.jax.extend.backend.get_backend()
        self.on_gpu = self.device.platform == "gpu"
        self.about = dict(device=self.device.device_kind, platform=self.client.platform_version, jax=self.jax.__version__)
        self.about |= dict(flags=os.environ.get("XLA_FLAGS", ""))

    def arithmetics(self, precision):
        """Those in which a program of this precision can run here."""
        return ("tf32", "float32") if precision == "float32" and self.on_gpu else (precision,)

    def compile(self, program, arithmetic, tune):
        """-> (executable, seconds), or the error in a line.

        tune: XLA tries its GPU kernels out first, which takes most of the time, and wants the GPU and a core for itself.
        """
        from jaxlib import _jax, xla_client  # what JAX itself compiles with: no public function takes a text

        begin, text, options = time.perf_counter(), read_text(program, arithmetic), xla_client.CompileOptions()
        if not tune:
            options.env_option_overrides = [("xla_gpu_autotune_level", 0)]
        try:
            executable = self.client.compile_and_load(text, _jax.DeviceList((self.device,)), options)
            return executable, time.perf_counter() - begin
        except Exception as error:
            return first_line(error)

    def put(self, values):
        return [self.jax.device_put(value, self.device) for value in values]

    def execute(self, executable, arguments):
        """The results, on the device. The arguments that are updated are gone then: their memory is used again."""
        results = executable.execute_sharded(arguments).disassemble_into_single_device_arrays()
        return self.jax.block_until_ready([array for (array,) in results])

    def seconds(self, executable, program, arguments):
        """(median seconds of a step, how many were measured, whether all results are finite); weights go from step to step."""
        times = []
        while len(times) < 8 or sum(times) < SECONDS and len(times) < 53:
            begin = time.perf_counter()
            results = self.execute(executable, arguments)
            times.append(time.perf_counter() - begin)
            for result, parameter in program["updated"]:
                arguments[parameter] = results[result]
        finite = all(bool(self.jax.numpy.isfinite(result).all()) for result in results)
        return statistics.median(times[3:]), len(times) - 3, finite

    def peak(self, arithmetic):
        """Operations per second of a large matrix product."""
        side = 8192 if self.on_gpu else 1024
        dtype = "float32" if arithmetic == "tf32" else arithmetic
        precision = "highest" if arithmetic == "float32" else "default"
        numbers = self.jax.device_put(np.random.default_rng(0).random((side, side), np.float32), self.device).astype(dtype)
        multiply = self.jax.jit(lambda x: self.jax.numpy.matmul(x, x, precision=precision))
        times = []
        for _ in range(10):
            begin = time.perf_counter()
            self.jax.block_until_ready(multiply(numbers))
            times.append(time.perf_counter() - begin)
        return 2 * side**3 / statistics.median(times[2:])


def first_line(error):
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def draw(program):
    """Values of a program's parameters like those of a training: [arrays]."""
    rng, values = np.random.default_rng(0), []
    for parameter in program["parameters"]:
        name, shape = parameter["name"], parameter["shape"]
        if "value" in parameter:
            value = parameter["value"]
        elif name == "images":
            value = rng.random(shape, np.float32)
        elif name == "masks":
            value = rng.random(shape, np.float32) > 0.5
        elif name.endswith("/kernel"):  # He et al. 2015; an up-convolution's numbers of channels are the other way round
            value = rng.standard_normal(shape) * (2 / np.prod(shape[:3])) ** 0.5
        else:
            value = np.full(shape, float(name.endswith(("/gamma", "/moving_variance"))))
        values.append(np.asarray(value, dtype=parameter["dtype"]))
    return values


def check(runtime, programs, is_over, report):
    """Compares the results of all programs that come with numbers. -> whether each is as near as rounding explains.

    They compile side by side, without trying kernels out; what is measured compiles alone.
    """
    todo = [(p, a) for p in programs if "tolerances" in p for a in runtime.arithmetics(p["precision"])]
    heads = f"{'implementation':<15}{'program':<12}{'arithmetic':<11}{'results':>8}  furthest off, relative to its largest"
    print(f"\n{heads}" if todo else "no program comes with numbers to compare", flush=True)
    passed = True
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiling = [pool.submit(runtime.compile, *one, tune=False) for one in todo]
        for k, (program, arithmetic) in enumerate(todo):
            if is_over():
                pool.shutdown(cancel_futures=True)
                print(f"the time is out: {len(todo) - k} programs were not compared", flush=True)
                return False
            passed &= check_one(runtime, program, arithmetic, compiling[k].result(), report)
    return passed


def check_one(runtime, program, arithmetic, compiled, report):
    """Prints and records how far off a program is that is compiled, or could not be. -> whether it computes the same."""
    row = {key: program[key] for key in ("implementation", "program", "precision", "batch_size", "height", "width")}
    row |= dict(arithmetic=arithmetic, folder=program["path"].parent.name)
    try:
        if isinstance(compiled, str):
            raise RuntimeError(compiled)
        row |= compare(runtime, program, arithmetic, compiled[0])
        words = f"{row['difference']:.1e} in {row['where']}; rounding explains {row['tolerance']:.1e}: "
        words += "the same" if row["same"] else "DIFFERENT"
    except Exception as error:  # one that this runtime cannot run is one that fails
        row |= dict(same=False, error=first_line(error))
        words = f"FAILED: {row['error']}"
    title = f"{program['implementation']:<15}{program['program']:<12}{arithmetic:<11}{len(program['results']):>8}"
    report("checks", row, f"{title}  {words}")
    return row["same"]


def compare(runtime, program, arithmetic, executable):
    """The result that is furthest off for what rounding explains: {same, where, difference, tolerance, worst}.

    difference, tolerance: as shares of its largest value. worst: the one over the other.
    """
    with np.load(program["path"].with_suffix(".npz")) as numbers:
        arguments = [numbers[f"in/{p['name']}"].astype(p["dtype"]) for p in program["parameters"]]
        expected = [numbers[f"out/{name}"] for name in program["results"]]
    results = runtime.execute(executable, runtime.put(arguments))
    found = []
    for name, x, y, bound in zip(program["results"], results, expected, program["tolerances"][arithmetic], strict=True):
        x, y = np.asarray(x).astype(np.float64), y.astype(np.float64)
        if x.shape != y.shape:
            raise RuntimeError(f"{name} has the shape {x.shape}, not {y.shape}")
        off, scale = np.abs(x - y).max(initial=0), np.abs(y).max(initial=0) or 1
        worst = off / bound if bound else off and np.inf
        found.append((np.inf if np.isnan(worst) else worst, off / scale, bound / scale, name))
    worst, difference, tolerance, where = max(found)
    same = bool(worst <= 1)
    return dict(same=same, worst=float(worst), difference=float(difference), tolerance=float(tolerance), where=where)


class Peer:
    """The same network in PyTorch, in a process of its own: the libraries of the two need not agree."""

    def __init__(self, path):
        from comparison import torch_peer

        self.why = "no --peer" if not path else "" if path.is_file() else f"there is no {path}"
        if not self.why:
            self.process, self.connection = comparison.start_process(torch_peer.work, path)

    def hello(self):
        """What it is, or why it is not there."""
        if not self.why:
            try:
                version, self.why = self.connection.recv()
                return f"PyTorch {version}" if version else f"no PyTorch beside it: {self.why}"
            except EOFError:
                self.why = "its process has ended"
        return f"no PyTorch beside it: {self.why}"

    def measure(self, **what):
        """[(program, seconds, steps, or an error)] of one setting."""
        if self.why:
            return []
        try:
            return comparison.ask(self.connection, what)
        except EOFError:
            self.why = "its process has ended"
            return [("train step", self.why, 0)]


def order(programs, arithmetics):
    """[(group of programs, arithmetic, which variant of the peer)]: what matters first.

    A group shares folder and precision. bfloat16 and TF32 come first, and of these the first size with both variants.
    """
    groups = {}
    for program in programs:
        groups.setdefault((program["path"].parent, program["precision"]), []).append(program)
    todo = [(group, a) for (_, precision), group in groups.items() for a in arithmetics(precision)]
    full = [one for one in todo if one[1] in ("float32", "float64") and len(arithmetics("float32")) > 1]
    fast = [one for one in todo if one not in full]
    first = [one for one in fast if size_of(one[0][0]) == size_of(fast[0][0][0])] if fast else []
    parts = [(first, "eager"), (first, "compile"), ([one for one in fast if one not in first], "eager"), (full, "eager")]
    parts.append(([one for one in [*fast, *full] if one not in first], "compile"))
    return [(group, a, variant) for part, variant in parts for group, a in part]


def size_of(program):
    return program["batch_size"], program["height"], program["width"]


def measure(runtime, programs, peer, is_over, report):
    """Times every program that was written for it, or, where there is none, those with numbers, and the peer beside them."""
    programs = [p for p in programs if "tolerances" not in p] or programs
    heads = f"{'batch':>6}{'size':>9}{'ms':>10}{'images/s':>11}{'TFLOP/s':>9}  of the peak"
    print(f"\n{'':<15}{'program':<12}{'arithmetic':<11}{heads}", flush=True)
    peaks, over = {}, "the time is out: what is left was not measured"
    for group, arithmetic, variant in order(programs, runtime.arithmetics):
        if is_over():
            return print(over, flush=True)
        if arithmetic not in peaks:
            peaks[arithmetic] = runtime.peak(arithmetic)
            report("peaks", {"arithmetic": arithmetic, "flops_per_second": peaks[arithmetic]},
                   f"{'matrix product':<27}{arithmetic:<11}{peaks[arithmetic] / 1e12:>45.2f}")  # fmt: skip
        shared = dict(arithmetic=arithmetic, peak=peaks[arithmetic], report=report)
        for program in group if variant == "eager" else ():
            if is_over():
                return print(over, flush=True)
            measure_one(runtime, program, arithmetic, shared)
        network, flops = group[0]["network"], {program["program"]: program for program in group}
        what = dict(filters=network["filters"], depth=network["depth"], channels=network["channels"], variant=variant)
        what |= dict(batch=group[0]["batch_size"], height=group[0]["height"], width=group[0]["width"], arithmetic=arithmetic)
        for name, seconds, steps in peer.measure(**what):
            if name in flops:
                speed_row(flops[name], f"torch {variant}", seconds, dict(steps=steps), **shared)


def measure_one(runtime, program, arithmetic, shared):
    """Times one program; what it held on the device is free when this returns, for the peer is on it too."""
    try:
        compiled = runtime.compile(program, arithmetic, tune=True)
        if isinstance(compiled, str):
            raise RuntimeError(compiled)
        seconds, steps, finite = runtime.seconds(compiled[0], program, runtime.put(draw(program)))
        more = dict(steps=steps, compile_seconds=compiled[1], finite=finite)
        speed_row(program, program["implementation"], seconds, more, **shared)
    except Exception as error:  # too little memory, say: the others may go
        speed_row(program, program["implementation"], first_line(error), {}, **shared)


def speed_row(program, who, seconds, more, arithmetic, peak, report):
    """Prints and records one measurement; seconds: or why there is none."""
    batch_size, height, width = size_of(program)
    row = dict(who=who, program=program["program"], arithmetic=arithmetic, batch_size=batch_size, height=height, width=width)
    words = f"{who:<15}{program['program']:<12}{arithmetic:<11}{batch_size:>6}{f'{width}x{height}':>9}"
    if isinstance(seconds, str):
        return report("speeds", row | dict(error=seconds), f"{words}  FAILED: {seconds}")
    speed = program["flops"] / seconds
    row |= dict(seconds=seconds, images_per_second=batch_size / seconds, flops_per_second=speed, of_peak=speed / peak) | more
    words += f"{1e3 * seconds:>10.3f}{batch_size / seconds:>11.1f}{speed / 1e12:>9.2f}{100 * speed / peak:>11.1f} %"
    report("speeds", row, words + ("" if more.get("finite", True) else "  not finite"))


def prepare(folder):
    """Writes small programs with numbers, and the default network's in `SIZES` without, in float32 and bfloat16."""
    from common.config import Config, Size
    from common.device import tf
    from comparison.programs import lower, save
    from data.loader import load_examples, training_batches

    tf.get_logger().setLevel("ERROR")  # v1's optimizer is built anew for each program, and TensorFlow counts
    for precision in ("bfloat16", "float32"):
        small = SMALL | dict(image_size=Size.parse(SMALL["image_size"]))
        config, training, _ = load_examples(Config.of(precision=precision, images=8, **small))
        batch = next(iter(training_batches(config, training)))
        for implementation in comparison.IMPLEMENTATIONS:
            save(lower(implementation, config, *batch), folder / f"00-small-{precision}")
    for k, (batch_size, side) in enumerate(SIZES, 1):
        for precision in ("bfloat16", "float32"):
            config = Config.of(precision=precision, batch_size=batch_size, **LARGE)
            images = masks = tf.TensorSpec((batch_size, side, side, 1), tf.float32)
            for implementation in comparison.IMPLEMENTATIONS:
                save(lower(implementation, config, images, masks), folder / f"{k:02}-{batch_size}x{side}-{precision}", False)
            print(f"batch {batch_size}, {side} pixels, {precision}", flush=True)
    print(f"written to {folder}: python -m comparison.pjrt {folder} --time")


def read_command_line(argv):
    parser = Parser(prog="python -m comparison.pjrt", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="of compare.py graph --save or --prepare; with its folders")
    parser.add_argument("--prepare", action="store_true", help="write programs there instead")
    parser.add_argument("--time", action="store_true", help="images per second too")
    words = "begin with no other program when so many seconds are gone since the start"
    parser.add_argument("--budget", type=count, metavar="SECONDS", help=words)
    words = "with --time: the same network in PyTorch, a file as comparison/torch_peer.py wants it"
    parser.add_argument("--peer", type=Path, metavar="FILE", help=words)
    parser.add_argument("--output", type=Path, metavar="FILE", help="the JSON (default: DIR/pjrt.json)")
    return parser.parse_args(argv)


def main(argv=None):
    """Returns the exit code: 0 when every result is as near as rounding explains, 1 when one is not."""
    begin, args = time.monotonic(), read_command_line(argv)
    if args.prepare:
        return prepare(args.folder)
    programs, path = find_programs(args.folder), args.output or args.folder / "pjrt.json"
    if path.resolve() in [program["path"].resolve() for program in programs]:
        raise UserError(f"--output {path} is one of the programs: name another file")
    refuse_foreign([path])  # before the work, not after it
    if not (args.time or any("tolerances" in program for program in programs)):
        raise UserError(f"the programs in {args.folder} come without numbers to compare: add --time, or write others")
    peer = Peer(args.peer) if args.time else None  # it starts meanwhile
    runtime = Runtime()
    found = {"runtime": runtime.about, "checks": [], "peaks": [], "speeds": []}

    def report(what, row, words):
        print(words, flush=True)
        found[what].append(row)
        write_text(path, json.dumps(found, indent=1) + "\n")

    print(f"{runtime.about['device']}, JAX {runtime.about['jax']}, {runtime.about['platform'].splitlines()[0]}", flush=True)

    def is_over():
        return args.budget and time.monotonic() - begin > args.budget

    passed = check(runtime, programs, is_over, report)
    if args.time:
        print(f"\n{peer.hello()}", flush=True)
        measure(runtime, programs, peer, is_over, report)
    print(f"\nwritten to {path}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.path[0] = str(comparison.ROOT)
    run_script(main)

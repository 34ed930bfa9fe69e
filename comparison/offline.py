"""TensorFlow on a GPU machine that reaches no package registry: packs it here in pieces that can be carried, and runs it there.

    python comparison/offline.py pack PIECES          here: installs requirements.txt and TensorFlow's CUDA libraries into
                                                      pieces of 56 MB, for the machine's Python and generation of GPU
    python3 comparison/offline.py run PIECES OUT      there, in a copy of this repository: unpacks them, and runs what there
                                                      is to see on a GPU; the JSON and pictures come to lie in OUT, a new folder

It needs nothing but Python's own library. What makes 5 GB carryable: the libraries hold machine code for six generations of
GPUs, of which one is kept; and TensorFlow opens libraries at its start that a convolution net never calls, which become empty
files with the right name. What is left are some 700 MB.
"""

import argparse
import lzma
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TAGS = [f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014", "1")]
NEVER_CALLED = ["libcufft.so.11", "libcusolver.so.11", "libcusolverMg.so.11", "libcusparse.so.12", "libcurand.so.10"]
NEVER_CALLED += ["libcudnn_adv.so.9", "libnccl.so.2"]  # Fourier transforms, solvers, attention, several GPUs
NOT_NEEDED = ["clang", "*/include", "tensorflow/lite/toco", "nvidia/*/lib/*_static*", "nvidia/cuda_nvcc/bin/cicc"]
NOT_NEEDED += ["nvidia/cuda_nvcc/nvvm/bin", "nvidia/cuda_nvcc/nvvm/lib64", "nvidia/cufft/lib/libcufftw*"]
PART = 48 * 2**20  # bytes of the archive that are compressed by themselves, so that all cores unpack it
RUNS = [  # name, seconds at most, command, whose folder of results is runs/NAME; * is this Python, DATA the folder of --data
    ("devices", 60, "* -c 'import common.device as d; print(d.device_name())'"),
    ("against", 120, "* compare.py parity --against comparison/golden.json"),
    ("parity", 240, "* compare.py parity"),
    ("bench", 300, "* compare.py bench --quick"),
    ("bench64", 300, "* compare.py bench --precision bfloat16 --batch-size 64 --image-size 256 --images 80"),
    ("loop", 120, "* compare.py bench --loop --batch-size 64"),
    ("data", 200, "* compare.py bench --data --dataset folder --data-dir DATA --crop-size 352"),
    ("train", 300, "* -m lowlevel.train"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="here")
    packing.add_argument("pieces", type=Path)
    packing.add_argument("--python", default="3.12", help="of the other machine (default: %(default)s)")
    words = "compute capability of its GPU (default: %(default)s, of an H100)"
    packing.add_argument("--generation", type=int, default=90, help=words)
    words = "of a piece at most (default: %(default)s)"
    packing.add_argument("--megabytes", type=int, default=56, choices=range(40, 4096), metavar="N", help=words)
    running = commands.add_parser("run", help="there")
    running.add_argument("pieces", type=Path)
    running.add_argument("output", type=Path)
    running.add_argument("--only", nargs="*", choices=[name for name, *_ in RUNS], help="default: all that follow")
    running.add_argument("--data", type=Path, help="images/ and masks/ for bench --data, which is left out without")
    running.add_argument("--seconds", type=float, default=float("inf"), help="start nothing after so many")
    args = parser.parse_args()
    site = args.pieces.with_name(args.pieces.name + "-site")
    for path in [args.pieces, site] if args.command == "pack" else [args.output]:
        if os.path.lexists(path):
            parser.error(f"{path} exists: name a new folder, or remove it")
    if args.command == "pack":
        pack(args.pieces, args.python, args.generation, args.megabytes)
        return 0
    deadline = time.time() + args.seconds
    try:
        unpack(args.pieces, site)
    except (OSError, ValueError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        parser.error(f"{args.pieces} cannot be unpacked: {error}")
    return run(site / "site", args.output, args.only, args.data, deadline)


def pack(pieces, python, generation, megabytes):
    """Installs for another Python into a folder beside `pieces`, makes it small, and writes it as `pieces`/NN/*.xz."""
    site = pieces.with_name(pieces.name + "-site") / "site"
    install = [sys.executable, *"-m pip install -q --only-binary=:all: --python-version".split(), python, "--target", site]
    install += [word for tag in TAGS for word in ("--platform", tag)] + ["-r", ROOT / "requirements.txt"]
    version = re.search(r"^tensorflow(==\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    subprocess.run([*install, f"tensorflow[and-cuda]{version}"], check=True)
    for pattern in NOT_NEEDED:
        for path in site.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in site.rglob("*.so*"):
        if path.name in NEVER_CALLED:
            subprocess.run(["gcc", "-shared", f"-Wl,-soname,{path.name}", "-o", path, "-xc", os.devnull], check=True)
        elif path.stat().st_size > 2**20:
            keep_generation(path, generation)
    pieces.mkdir(parents=True)
    archive = site.with_name("site.tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(site, "site", filter=lambda entry: None if "__pycache__" in entry.name else entry)
    shutil.rmtree(site)
    with ProcessPoolExecutor() as pool:
        count = -(-archive.stat().st_size // PART)
        parts = list(pool.map(compress, [archive] * count, range(count), [pieces] * count))
    archive.unlink()
    number, size = 0, 0
    for part in parts:
        size += part.stat().st_size
        if size > megabytes * 1e6:
            number, size = number + 1, part.stat().st_size
        folder = pieces / f"{number:02}"
        folder.mkdir(exist_ok=True)
        part.rename(folder / part.name)
    print(f"{number + 1} pieces of {megabytes} MB at most, in {pieces}/00 to {number:02}")


def compress(archive, k, folder):
    with open(archive, "rb") as file:
        file.seek(k * PART)
        path = folder / f"{k:03}.xz"
        path.write_bytes(lzma.compress(file.read(PART)))
    return path


def keep_generation(path, generation):
    """Zeroes the machine code of other GPUs in a library; its layout stays, and zeros take no room in an archive.

    CUDA's compiler puts them side by side: a container with a header (magic number, 2 bytes version, 2 bytes its own size,
    8 bytes what follows), in it entries with a header each (2 bytes kind: 1 PTX, 2 machine code; 4 bytes its own size at 4,
    8 bytes what follows at 8, 4 bytes compute capability at 28).
    """
    data, changed = bytearray(path.read_bytes()), False
    for match in re.finditer(rb"\x50\xed\x55\xba\x01\x00\x10\x00", data):
        entry = match.start() + 16
        end = entry + struct.unpack_from("<Q", data, match.start() + 8)[0]
        while entry < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", data, entry)
            (capability,) = struct.unpack_from("<I", data, entry + 28)
            entry += header
            if kind not in (1, 2) or entry + size > end:
                break  # no container after all
            if kind == 1 or capability != generation:
                data[entry : entry + size] = bytes(size)
                changed = True
            entry += size
    if changed:
        path.write_bytes(data)


def unpack(pieces, site):
    """Unpacks `pieces` as the folder `site`, once. Raises: OSError, ValueError, EOFError, LZMAError, TarError if not whole."""
    begin = time.time()
    if not site.exists():
        parts = sorted(pieces.rglob("*.xz"), key=lambda path: path.name)
        if not parts or [part.stem for part in parts] != [f"{k:03}" for k in range(len(parts))]:
            raise ValueError("it lacks some of 000.xz, 001.xz and so on")
        unfinished = Path(tempfile.mkdtemp(dir=pieces.parent))
        with ProcessPoolExecutor() as pool, open(unfinished / "site.tar", "wb") as file:
            for text in pool.map(decompress, parts):
                file.write(text)
        with tarfile.open(unfinished / "site.tar") as tar:
            tar.extractall(unfinished, filter="data")
        (unfinished / "site.tar").unlink()
        unfinished.rename(site)  # all of it, or nothing
        print(f"unpacked in {time.time() - begin:.0f} s", flush=True)


def run(site, output, only=None, data=None, deadline=float("inf")):
    """Runs `RUNS` with the modules in `site`, and starts none after `deadline`. Returns: how many of them failed."""
    path = [str(site), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}
    output.mkdir(parents=True)
    failed = 0
    for name, limit, command in RUNS:
        if (only and name not in only) or ("DATA" in command and not data) or time.time() > deadline:
            continue
        start, folder = time.time(), ROOT / "runs" / name
        command = [{"*": sys.executable, "DATA": str(data)}.get(word, word) for word in shlex.split(command)]
        if "-c" not in command:
            command += ["--run-dir", str(folder)]
        with open(output / f"{name}.log", "w") as log:
            where = dict(cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            code = subprocess.run(["timeout", str(limit), *command], **where).returncode
        failed += code != 0
        print(f"{name}: exit code {code} after {time.time() - start:.0f} s: {shlex.join(command)}", flush=True)
        for path in folder.glob("*.*"):
            if path.suffix in (".json", ".png", ".csv"):
                shutil.copy(path, output / f"{name}-{path.name}")
    return failed


def decompress(path):
    return lzma.decompress(path.read_bytes())


if __name__ == "__main__":
    sys.exit(main())

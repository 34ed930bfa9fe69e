"""Several devices and hosts: how they start, and what they have to agree on. What a step computes on them: `training.devices`.

tf.distribute copies the variables to every device and keeps the copies equal: MirroredStrategy for the devices of one host,
MultiWorkerMirroredStrategy for several hosts, where the same script runs once on each. The first of them, the chief, prints,
validates and writes; the others know what they need to from it.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import time
import zlib
from pathlib import Path

from common.cli import OUT_OF_MEMORY
from common.config import Addresses, UserError
from common.device import tf
from training.devices import scope

import numpy as np

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last: of Slurm, before the time is up
WAIT = 300  # seconds in which all hosts have to come
# what hosts need not have in common; whether they read the same images `Run` asks
OF_A_HOST = ("worker", "data_dir", "run_dir", "split", "cache", "checkpoint", "resume")


def with_cluster(config):
    """`config` with the hosts that TF_CONFIG names, where a cluster sets it and --workers is not given."""
    if config.training.workers or not os.environ.get("TF_CONFIG"):
        return config
    try:
        told = json.loads(os.environ["TF_CONFIG"])
        jobs, kind, index = told["cluster"], told["task"]["type"], int(told["task"]["index"])
        chiefs = jobs.get("chief", [])
        workers = Addresses.parse(",".join(chiefs + jobs.get("worker", [])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        how = "unset it, or give --workers and --worker"
        raise UserError(f"TF_CONFIG does not say which workers there are and which this is ({error!r}): {how}") from None
    if kind not in ("chief", "worker"):  # the chief validates, and no host holds the weights of others
        raise UserError(f"TF_CONFIG makes this host {kind!r}: only the chief and the workers train, start nothing on it")
    worker = index if kind == "chief" else len(chiefs) + index
    return config.replace(workers=workers, worker=worker)


@contextlib.contextmanager
def spread(config):
    """What is inside trains on the devices and hosts that `config` names; with one device nothing is different.

    Comes before the first operation, for that starts the devices. Raises: UserError for devices that there are not, for hosts
    that were told something else, and when another host is lost.
    """
    training = config.training
    if training.replicas == 1:
        yield
        return
    devices = find_devices(training)
    if not training.workers:
        with scope(mirrored(devices)):
            yield
        return
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(training.workers)}), "", "worker", training.worker, rpc_layer="grpc"
    )
    try:
        _meet(training)
        with scope(tf.distribute.MultiWorkerMirroredStrategy(resolver)):
            agree({name: value for name, value in config.as_dict().items() if name not in OF_A_HOST})
            if not is_chief():
                sys.stdout = open(os.devnull, "w")
            yield
    except tf.errors.ResourceExhaustedError:
        print(f"\nerror: worker {training.worker}: {OUT_OF_MEMORY}", file=sys.stderr, flush=True)
        os._exit(2)  # as below
    except tf.errors.OpError as error:
        who = ", ".join(_silent(training)) or f"one of the workers ({error.message.splitlines()[0][:100]})"
        _give_up(training, f"any more from {who}: what was saved before stays; --resume on all goes on with it")


def mirrored(devices):
    """The strategy that trains on these devices of this host, such as "GPU:0"."""
    sums = tf.distribute.ReductionToOneDevice() if devices[0].startswith("CPU") else None  # None: NCCL
    return tf.distribute.MirroredStrategy(devices, sums)


def find_devices(training):
    """The names of the devices of this host: GPUs, or copies of the CPU where there are none."""
    gpus, n = tf.config.list_physical_devices("GPU"), training.devices
    if gpus:
        if n > len(gpus):
            raise UserError(f"--devices {n}, but this host has {len(gpus)}: take at most as many")
        tf.config.set_visible_devices(gpus[:n], "GPU")
    elif n > 1 and training.workers:
        raise UserError("--devices of a CPU are for one host: leave them out, or start more --workers")
    elif n > 1:
        copies = [tf.config.LogicalDeviceConfiguration()] * n
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], copies)
    return [f"{'GPU' if gpus else 'CPU'}:{k}" for k in range(n)]


def _meet(training):
    """Returns when every host listens at its address: TensorFlow waits for one that does not come, and hears no signal then.

    Python listens at the address of this host until the others are there, and TensorFlow after that.
    """
    end = time.monotonic() + WAIT
    with socket.create_server(("", int(training.workers[training.worker].rsplit(":", 1)[1]))):
        while silent := _silent(training):
            if time.monotonic() > end:
                _give_up(training, f"within {WAIT} seconds from {', '.join(silent)}: start all with the same --workers")
            time.sleep(0.2)


def _silent(training):
    """The other hosts at whose address nobody listens."""
    found = []
    for k, address in enumerate(training.workers):
        host, port = address.rsplit(":", 1)
        try:
            if k != training.worker:
                socket.create_connection((host, int(port)), timeout=2).close()
        except (OSError, UnicodeError):  # no such name, or none that can be one
            found.append(f"worker {k} ({address})")
    return found


def _give_up(training, what):
    print(f"\nerror: worker {training.worker}: no word {what}", file=sys.stderr, flush=True)
    os._exit(1)  # TensorFlow's own end would wait for the others


def _place():
    """(the number of this host, how many there are)"""
    resolver = tf.distribute.get_strategy().cluster_resolver
    return (resolver.task_id, resolver.cluster_spec().num_tasks("worker")) if resolver else (0, 1)


def is_chief():
    """Whether this process prints, validates and writes: the first host, or the only one."""
    return _place()[0] == 0


def described():
    """The devices in words, behind the name of one: "" where there is but one."""
    n, hosts = tf.distribute.get_strategy().num_replicas_in_sync, _place()[1]
    if n == 1:
        return ""
    cpu = "" if tf.config.list_physical_devices("GPU") else ", copies of this CPU, to try it out"
    return f", on {n} devices{f' of {hosts} hosts' if hosts > 1 else cpu}"


@tf.function(input_signature=[tf.TensorSpec([None], tf.float64)])
def _sum_of_replicas(values):
    strategy = tf.distribute.get_strategy()
    return strategy.reduce("SUM", strategy.run(lambda: values), axis=None)


def _sum(values):
    """The sum over all hosts of `values`, an array of one shape on all, in float64."""
    here = tf.distribute.get_strategy().num_replicas_in_sync // _place()[1]
    return _sum_of_replicas(tf.constant(np.ravel(values), tf.float64)).numpy().reshape(np.shape(values)) / here


def _of_chief(values):
    """`values` as the chief has them; on the others their shape counts alone."""
    return _sum(values if is_chief() else np.zeros(np.shape(values)))


def from_chief(make):
    """What make() gives on the chief, on every host: anything that JSON holds."""
    if _place()[1] == 1:
        return make()
    text = np.frombuffer(json.dumps(make()).encode() if is_chief() else b"", np.uint8)
    text = _of_chief(np.resize(text, int(_of_chief(len(text)))))
    return json.loads(text.astype(np.uint8).tobytes())


def copy_from_chief(variables):
    """Gives the variables, name -> variable, the values that they have on the chief."""
    if _place()[1] > 1:
        for variable in variables.values():
            value = variable.numpy()
            variable.assign(_of_chief(value).astype(value.dtype))


def agree(facts):
    """Raises: UserError unless `facts`, name -> what JSON holds, are the same on all hosts; it names what differs."""
    k, n = _place()
    if n == 1:
        return
    table = np.zeros((n, len(facts)))
    table[k] = [zlib.crc32(json.dumps(value).encode()) for value in facts.values()]
    for name, column in zip(facts, _sum(table).T):
        if odd := [str(k) for k in range(n) if column[k] != column[0]]:
            who = f"worker {', '.join(odd)}"
            raise UserError(f"{who} has another {name} than the chief: start all with the same options and data")


@dataclasses.dataclass
class StopSignal:
    """A signal that arrives at one host stops all of them after the same step."""

    arrived: int = 0  # the number of the signal that this host has got
    asked: tf.Tensor | None = None

    def heard(self):
        """The signal to stop by, 0: none. Called once a step on every host. Of several hosts it is what they said a step
        ago, so that no device waits for it."""
        if _place()[1] == 1:
            return self.arrived
        asked, self.asked = self.asked, _sum_of_replicas(tf.constant([self.arrived], tf.float64))
        return (self.arrived or signal.SIGTERM) if asked is not None and asked.numpy()[0] else 0


def free_addresses(n):
    """n addresses of this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:  # all open at once, so that no port is given twice
        sockets = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(n)]
        return [f"localhost:{s.getsockname()[1]}" for s in sockets]


def environment():
    """That of this process, in which a Python that is started anywhere finds the modules of this project."""
    folders = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}

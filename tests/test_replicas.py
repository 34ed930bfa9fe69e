"""Several devices and hosts: the same training as on one, and nobody waits for a host that is lost."""

import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from unittest import mock

from common import see_one_gpu
from common.checkpoint import load_checkpoint
from common.config import IMPLEMENTATIONS, Addresses, Config, Size, UserError
from common.losses import weighted_mean
from comparison import columns
from comparison.proof import replicas
from comparison.proof.apart import difference
from tests.helpers import ROOT, python
from training.folds import side_by_side
from training.hosts import environment, free_addresses, with_cluster

import numpy as np
import pytest

STEPS = 2
TINY = dict(filters=2, depth=1, image_size=Size(16, 16), batch_size=4, images=20)
OPTIONS = "--filters 2 --depth 1 --image-size 16 --batch-size 4 --images 20".split()


# --- what a step computes: in a process of its own, since devices are set before the first operation ---


def tell_apart(implementation, with_faults):
    """{fault: largest difference of losses, weights and statistics on 2 devices from 1}, "" without a fault."""
    from common.device import tf
    from training import devices

    strategies = replicas.start_devices((1, 2))
    hard = replicas.WAYS["explicit, class weights, clipped, dropout"]
    config = Config.of(**{**TINY, **hard, "weight_map": True})
    alone = replicas.train(implementation, config, range(STEPS), strategies[1])
    share, total, moments = devices.share_of_loss, devices.total, tf.nn.moments
    faults = {
        "moments of each device": {"moments": lambda x: moments(x, [0, 1, 2])},
        "weights of each device": {"share_of_mean": lambda x, w=None: weighted_mean(x, w) / 2},
        "a mean is no share": {"share_of_loss": lambda *batch: 2 * share(*batch)},
        "the same dropout on each": {"drawn_for_batch": lambda draw, x: draw(x)},
    }
    if implementation != "lowlevel":  # there clipping before the sum would be two lines in another order
        of_lists = {"total": lambda x: x if isinstance(x, list | tuple) else total(x), "share": lambda x: x}
        faults["clipped before the sum"] = of_lists

    def apart(found, wanted):
        return max(difference(found[rung], wanted[rung])[1] for rung in ("losses", "weights", "moving statistics"))

    results = {"": apart(replicas.train(implementation, config, range(STEPS), strategies[2]), alone)}
    for fault, patches in faults.items() if with_faults else ():
        with mock.patch.multiple(devices, **patches):
            results[fault] = apart(replicas.train(implementation, config, range(STEPS), strategies[2]), alone)
    if with_faults or implementation == "lowlevel":
        fused = Config.of(**TINY)
        by_rows = replicas.train_by_rows(implementation, fused, STEPS, 2)
        results["fused"] = apart(replicas.train(implementation, fused, range(STEPS), strategies[2]), by_rows)
    if with_faults and implementation != "highlevel":  # tf.layers asks for the mean of its statistics by itself
        with mock.patch.object(devices, "scope", lambda strategy: strategy.scope()):
            found = replicas.train(implementation, fused, range(STEPS), strategies[2])
        results["statistics of the first device"] = apart(found, by_rows)
    return results


def told_apart(implementation, with_faults):
    work = importlib.import_module("tests.test_replicas").tell_apart  # under the name that another process finds it by
    return columns.call(work, implementation, implementation, with_faults)


@pytest.mark.parametrize(
    "implementation", ["lowlevel", *(pytest.param(name, marks=pytest.mark.slow) for name in ("highlevel", "keras_impl"))]
)
def test_two_devices_train_as_one(implementation):
    results = told_apart(implementation, with_faults=False)
    assert results[""] <= 1e-13, "sums in another order, in float64"
    assert results.get("fused", 0.0) <= 1e-5, "float32; the statistics of each device, and then their mean"


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_faults_of_several_devices_are_seen(implementation):
    results = told_apart(implementation, with_faults=True)
    assert results.pop("") <= 1e-13
    assert results.pop("fused") <= 1e-5, "the same in float32"
    assert len(results) >= 4
    for fault, found in results.items():
        assert found > 1e-6, f"planted and not seen: {fault}"


def test_the_processes_that_a_training_starts_find_the_project_from_any_folder(tmp_path):
    command = [sys.executable, "-c", "import common"]
    assert subprocess.run(command, cwd=tmp_path, env=environment()).returncode == 0
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1


def test_a_cluster_tells_who_is_who(monkeypatch):
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}}))
    told = with_cluster(Config.of(batch_size=9)).training
    assert told.workers == ("a:1", "b:1", "c:1") and told.worker == 2
    given = Config.of(workers=Addresses(["x:1", "y:1"]), worker=0)
    assert with_cluster(given) == given, "the command line counts"
    for kind in ("evaluator", "ps"):
        task = {"type": kind, "index": 0}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {**cluster, kind: ["d:1"]}, "task": task}))
        with pytest.raises(UserError, match=f"TF_CONFIG makes this host '{kind}': only the chief and the workers train"):
            with_cluster(Config())
    for damaged in ('{"cluster": 3}', "{}", "x"):
        monkeypatch.setenv("TF_CONFIG", damaged)
        with pytest.raises(UserError, match="TF_CONFIG does not say.*: unset it"):
            with_cluster(Config())


def test_a_run_keeps_no_hosts():
    config = Config.of(workers=Addresses(["a:1", "b:1"]), worker=1, devices=2)
    assert config.kept == Config.of(devices=2)


# --- hosts: processes of this machine ---


def start_host(implementation, k, addresses, run_dir, *options):
    command = [sys.executable, "-u", "-m", f"{implementation}.train", *OPTIONS, "--run-dir", str(run_dir), *options]
    command += ["--workers", ",".join(addresses), "--worker", str(k)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_hosts(implementation, run_dir, *options):
    addresses = free_addresses(2)
    return [start_host(implementation, k, addresses, run_dir, *options) for k in range(2)]


def train(implementation, run_dir, *options):
    done = python("-m", f"{implementation}.train", *OPTIONS, "--run-dir", run_dir, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_epoch(process, epoch):
    for line in process.stdout:
        if line.startswith(f"epoch {epoch:>4}/"):
            return
    raise AssertionError(process.stderr.read())


def weights_of(run_dir):
    return load_checkpoint(run_dir / "last.safetensors")[0]


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_checkpoints_go_from_hosts_to_devices_and_back(implementation, tmp_path):
    wide = ["--batch-norm", "explicit", "--precision", "float64", "--warmup", "9"]
    train(implementation, tmp_path / "one", *wide, "--epochs", "3")
    several = tmp_path / "several"
    hosts = start_hosts(implementation, several, *wide, "--epochs", "1")
    assert "on 2 devices of 2 hosts" in [host.communicate(timeout=120)[0] for host in hosts][0]
    assert "on 2 devices, copies of this CPU" in train(implementation, several, "--resume", "--epochs", "2", "--devices", "2")
    train(implementation, several, "--resume", "--epochs", "3", "--devices", "1")
    for name, weight in weights_of(tmp_path / "one").items():
        np.testing.assert_allclose(weights_of(several)[name], weight, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_host_that_dies_ends_the_others(implementation, killed, tmp_path):
    hosts = start_hosts(implementation, tmp_path / "run", "--epochs", "1000")
    wait_for_epoch(hosts[0], 2)
    hosts[killed].kill()
    begin = time.monotonic()
    said = hosts[1 - killed].communicate(timeout=60)[1]
    assert time.monotonic() - begin < 30
    assert hosts[1 - killed].returncode == 1
    assert re.search(rf"^error: worker {1 - killed}: no word any more from .*--resume", said, re.MULTILINE), said
    assert "Traceback" not in said
    assert weights_of(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_signal_at_one_host_stops_all(implementation, asked, number, tmp_path):
    hosts = start_hosts(implementation, tmp_path / "run", "--epochs", "1000")
    wait_for_epoch(hosts[0], 2)
    hosts[asked].send_signal(number)
    said = [host.communicate(timeout=60)[1] for host in hosts]
    assert hosts[asked].returncode == 128 + number
    assert hosts[1 - asked].returncode > 128
    assert "go on with: python -m" in said[0], said
    assert not any("Traceback" in words for words in said)
    assert weights_of(tmp_path / "run")


@pytest.mark.slow
def test_a_host_that_never_comes_is_not_waited_for(tmp_path):
    addresses = free_addresses(2)
    program = "import sys; from training import hosts; hosts.WAIT = 15; from lowlevel.train import main; main(sys.argv[1:])"
    hosts = ["--workers", ",".join(addresses), "--worker", "0", "--run-dir", tmp_path / "run"]
    host = python("-c", program, *OPTIONS, *hosts)
    assert host.returncode == 1 and re.search(rf"no word within 15 seconds from worker 1 \({addresses[1]}\)", host.stderr)


@pytest.mark.slow
def test_hosts_with_other_options_are_told(tmp_path):
    addresses = free_addresses(2)
    hosts = [start_host("lowlevel", k, addresses, tmp_path / "run", "--seed", str(k)) for k in range(2)]
    said = [host.communicate(timeout=90)[1] for host in hosts]
    assert all("worker 1 has another seed than the chief" in words for words in said), said
    assert [host.returncode for host in hosts] == [2, 2]
    assert not (tmp_path / "run" / "last.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_folds_side_by_side_are_folds_one_after_the_other(implementation, tmp_path):
    for devices in ("1", "2"):
        train(implementation, tmp_path / devices, "--folds", "3", "--epochs", "2", "--devices", devices)
    for k in range(STEPS):
        one, two = (weights_of(tmp_path / devices / f"fold{k}") for devices in ("1", "2"))
        for name in one:
            np.testing.assert_array_equal(two[name], one[name], err_msg=name)
    assert (tmp_path / "1" / "folds.csv").read_text() == (tmp_path / "2" / "folds.csv").read_text()


@pytest.mark.parametrize(
    ("visible", "number", "seen"), [(None, 1, "1"), ("2,3", 1, "3"), ("", 0, ""), ("", 1, ""), ("-1", 0, "-1"), ("-1", 1, "-1")]
)
def test_one_gpu_of_those_that_may_be_used(visible, number, seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # so that it is put back
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    see_one_gpu(number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_a_fold_sees_its_gpu_from_its_start(monkeypatch):
    """CUDA reads the variable once, when TensorFlow starts."""
    seen = []

    class Process:
        def __init__(self, command, env, **_):
            seen.append(env["CUDA_VISIBLE_DEVICES"])
            self.stdout = io.StringIO("a line\n")

        def wait(self):
            return 0

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr("training.folds.subprocess.Popen", Process)
    monkeypatch.setattr("training.folds.find_devices", lambda _: ["GPU:0", "GPU:1"])
    folds = [Config.of(folds=6, fold=k) for k in range(6)]
    side_by_side("lowlevel", folds, Config.of(devices=2).training)
    assert len(seen) == 6 and {*seen} <= {"4", "7"} and os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"

    def print_to_nobody(*words, **_):
        if words[0].endswith("a line\n"):
            raise BrokenPipeError

    monkeypatch.setattr("builtins.print", print_to_nobody)
    with pytest.raises(BrokenPipeError):
        side_by_side("lowlevel", folds, Config.of(devices=2).training)
    assert len(seen) < 12, "no more begin"


def test_free_addresses_differ():
    assert len(set(free_addresses(8))) == 8

"""bench --profile: which operation counts where, what counts at all, and the command on a small network."""

import collections
import json
import re

import compare
from common.config import Config, Size
from comparison import columns
from comparison.benchmark import profile

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

SMALL = dict(channels=1, classes=1, filters=2, depth=1, batch_size=2, image_size=Size(16, 16))
# what moves or names values and computes none of them
IDLE = {"Const", "NoOp", "Identity", "IdentityN", "StopGradient", "ReadVariableOp", "AssignAddVariableOp"}
IDLE |= {"Shape", "ShapeN", "Pack", "Unpack", "Reshape", "Squeeze", "ConcatOffset", "FloorMod", "ZerosLike", "Fill"}


def kinds(implementation, config):
    """{kind: Counter of operation types} in the train step as traced."""
    code = columns.load(implementation)
    step = code.make_train_step(code.UNet(config.network), config)
    images = tf.zeros([2, 16, 16, 1])
    found = collections.defaultdict(collections.Counter)
    for node in step.get_concrete_function(images, images).graph.as_graph_def().node:
        of_shapes = node.op == "Mul" and node.attr["T"].type == tf.int32.as_datatype_enum
        if node.op != "Placeholder" and not of_shapes:
            found[profile.kind(f"{node.name}:{node.op}")][node.op] += 1
    return found


def biases(implementation, count):
    """Keras adds that of the head, with one channel, in another way."""
    if implementation == "keras_impl":
        return {"BiasAdd": count - 1, "BiasAddGrad": count - 1, "AddV2": 1, "Sum": 1}
    return {"BiasAdd": count, "BiasAddGrad": count}


def test_every_operation_of_the_network_has_its_kind(implementation):
    """Depth 1: six 3x3 convolutions with normalization and activation, a pooling, an up-convolution, the head."""
    found = kinds(implementation, Config.of(**SMALL))
    assert found["convolution, forward"] == {"Conv2D": 7, "Conv2DBackpropInput": 1}
    assert found["convolution, input gradient"] == {"Conv2DBackpropInput": 7, "Conv2D": 1}  # that of the images is pruned later
    assert found["convolution, filter gradient"] == {"Conv2DBackpropFilter": 8}
    assert found["batch normalization"] == {"FusedBatchNormV3": 6, "FusedBatchNormGradV3": 6, "AssignVariableOp": 12}
    assert found["activation"] == {"Elu": 6, "EluGrad": 6}
    assert found["pooling"] == {"MaxPool": 1, "MaxPoolGrad": 1}
    assert found["bias"] == biases(implementation, 2)
    assert found["sums of gradients"] == {"AddN": 2}
    assert {"Sigmoid", "SigmoidGrad"} <= found["loss"].keys()
    assert {"ResourceApplyAdam", "Sqrt"} & found["optimizer"].keys()
    assert found["rest"].keys() <= IDLE, found["rest"]


def test_options_have_their_kind_too(implementation):
    others = dict(loss="dice_ce", optimizer="sgd", clip_norm=1.0, dropout=0.5, activation="relu")
    bare = kinds(implementation, Config.of(**{**SMALL, **others}, batch_norm="none"))
    assert not bare["batch normalization"], "whatever calculates is of the loss, the dropout or the optimizer"
    assert "SelectV2" in bare["dropout"] and bare["activation"] == {"Relu": 6, "ReluGrad": 6}
    assert bare["bias"] == biases(implementation, 8)
    explicit = kinds(implementation, Config.of(**SMALL, batch_norm="explicit", precision="bfloat16"))
    assert explicit["batch normalization"]["Rsqrt"] == 6 and explicit["batch normalization"]["RsqrtGrad"] == 6
    assert explicit["concatenation, slices, casts"]["Cast"] > 12
    for found in (bare, explicit):
        assert found["rest"].keys() <= IDLE, found["rest"]


@pytest.mark.parametrize(
    ("operation", "row"),
    [
        ("Elu_16:_MklNativeFusedConv2D", "convolution, forward"),
        ("conv2d_transpose:_MklNativeConv2DBackpropInput", "convolution, forward"),
        ("gradient_tape/conv2d_transpose/Conv2D:_MklNativeConv2D", "convolution, input gradient"),
        ("gradient_tape/head/Conv2D/Conv2DBackpropFilter:_MklConv2DBackpropFilterWithBias", "convolution, filter gradient"),
        ("down0/bn1/FusedBatchNormV3:_FusedBatchNormEx", "batch normalization"),
        ("down0/bn1/FusedBatchNormV3/ReadVariableOp:ReadVariableOp", "rest"),
        ("gradient_tape/loss/mul/Mul:Mul", "loss"),
        ("optimizer/Adam/update_head/kernel/ResourceApplyAdam:ResourceApplyAdam", "optimizer"),
        ("MemcpyD2D", "concatenation, slices, casts"),
        ("glossy/Mystery:Mystery", "rest"),
    ],
)
def test_names_of_optimized_graphs(operation, row):
    assert profile.kind(operation) == row


# --- what counts, in hand-made files ---


def add_plane(space, name, lines):
    """lines: name -> [(name of an event, begin, duration, tf_op or None)], in ms."""
    plane = space.planes.add(name=name)
    plane.stat_metadata[1].name = "tf_op"
    for line_name, events in lines.items():
        line = plane.lines.add(name=line_name, timestamp_ns=7_000_000)
        for event, begin, duration, *tf_op in events:
            key = len(plane.event_metadata) + 1
            plane.event_metadata[key].name = event
            event = line.events.add(metadata_id=key, offset_ps=int(begin * 1e9), duration_ps=int(duration * 1e9))
            for value in tf_op:
                event.stats.add(metadata_id=1, str_value=value)


def test_containers_and_nested_operations_count_once():
    space = xplane_pb2.XSpace()
    threads = {
        "python": [(profile.WINDOW, 10, 100), ("train_step", 10, 99), ("EagerLocalExecute: __inference_step_7", 11, 90)],
        "tf_Compute/1": [
            ("Conv2D:Conv2D", 2, 5),  # before the window
            ("ExecutorState::Process", 20, 80),
            ("PartitionedCall:StatefulPartitionedCall", 20, 80),
            ("Conv2D:Conv2D", 20, 30),
            ("ParallelFor", 22, 10),
            ("Elu:Elu", 40, 10),  # on the same thread, called by what surrounds it
            ("MaxPool:MaxPool", 50, 10),
        ],
        "tf_Compute/2": [("gradient_tape/EluGrad:EluGrad", 45, 25)],  # 15 ms of it beside the other thread
    }
    add_plane(space, "/host:CPU", threads)
    measured = profile.measure(space, steps=2)
    own = {"gradient_tape/EluGrad:EluGrad": 12.5, "Conv2D:Conv2D": 10, "Elu:Elu": 5, "MaxPool:MaxPool": 5}
    assert measured["operations"] == own
    assert measured["wall"] == 50 and measured["busy"] == 25
    rows = profile.add_up(measured)
    assert rows["activation"] == 17.5 and rows["convolution, forward"] == 10 and rows[profile.WAITING] == 25
    assert sum(rows.values()) == 57.5


def test_a_gpu_is_looked_at_first():
    space = xplane_pb2.XSpace()
    add_plane(space, "/host:CPU", {"python": [(profile.WINDOW, 0, 10)], "tf_Compute/1": [("Conv2D:Conv2D", 0, 9)]})
    kernels = [("sm80_xmma_fprop", 1, 2, "Conv2D:Conv2D"), ("MemcpyD2D", 4, 1)]
    add_plane(space, "/device:GPU:0", {"Stream #14(Compute)": kernels, "Steps": [("3", 0, 10)]})
    measured = profile.measure(space, steps=1)
    assert measured["operations"] == {"Conv2D:Conv2D": 2, "MemcpyD2D": 1}
    assert measured["busy"] == 3


# --- the command ---


def test_profile_of_a_small_network(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(columns, "IMPLEMENTATIONS", ("lowlevel",))
    arguments = "bench --profile --filters 2 --depth 1 --image-size 32 --batch-size 2 --images 6".split()
    assert compare.main([*arguments, "--run-dir", str(tmp_path)]) == 0
    output, errors = capfd.readouterr()
    assert not errors, "no warnings"
    for table in re.split(r"\n(?=training|inference)", output)[1:]:
        printed = {line[:32].strip(): line[32:].split() for line in table.splitlines() if line[:32].strip() in profile.ROWS}
        assert float(printed["convolution, forward"][1]) > 0
        assert abs(sum(float(share) for _, share in printed.values()) - 100) < 0.06 * len(printed)
    records = json.loads((tmp_path / "profile.json").read_text())["records"]
    assert [record["mode"] for record in records] == ["train", "infer"]
    for record in records:
        rows = record["rows_ms"]
        assert list(rows) == list(profile.ROWS)
        np.testing.assert_allclose(sum(rows.values()), sum(record["operations_ms"].values()) + rows[profile.WAITING])
        assert rows["convolution, forward"] > 0 and 0 < rows[profile.WAITING] < record["wall_ms"]
    trained, inferred = (record["rows_ms"] for record in records)
    gradients = ("convolution, filter gradient", "convolution, input gradient", "optimizer", "loss", "batch normalization")
    assert all(trained[row] > 0 and inferred[row] == 0 for row in gradients)

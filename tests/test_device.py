"""common/device.py: what users of a GPU that will not compute are told, before it crashes."""

from common import device

import pytest

WHEEL = ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"]  # TensorFlow 2.21's own


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        *[((3, 7), False), ((6, 1), True), ((7, 0), True), ((7, 5), True), ((8, 0), True), ((8, 6), True), ((8, 9), True)],
        *[((9, 0), True), ((10, 0), False), ((10, 3), False), ((12, 0), False)],
    ],
)
def test_which_gpus_the_wheel_has_code_for(capability, runs):
    assert device.has_code_for(capability, WHEEL) == runs
    assert device.has_code_for(capability, [*WHEEL, "sm_37", "sm_100a", "sm_120"]), "as NVIDIA's container"


@pytest.mark.parametrize(
    ("gpus", "lacking", "words"),
    [
        ({"NVIDIA H200": (9, 0)}, [], None),
        (
            {"NVIDIA GeForce RTX 5090": (12, 0)},
            [],
            "no code for NVIDIA GeForce RTX 5090, of compute capability 12.0, and may crash",
        ),
        ({}, ["libcudnn.so.9"], "without libcudnn.so.9: pip install 'tensorflow[and-cuda]==2.21.0'"),
        ({}, [], "though its libraries are there: does nvidia-smi show one?"),
    ],
)
def test_trouble_is_told_in_a_line(gpus, lacking, words):
    lines = list(device.trouble(gpus, lacking, WHEEL, "2.21.0"))
    assert [words in line for line in lines] == [True] * (words is not None) and not any("\n" in line for line in lines)


def test_libraries_are_looked_for_beside_the_wheel_and_in_the_system(tmp_path, monkeypatch):
    assert not device.is_there("libcublasLt.so.nobody") and device.is_there("libc.so.6")
    path = tmp_path / "nvidia" / "cublas" / "lib" / "libcublasLt.so.nobody"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert device.is_there(path.name)

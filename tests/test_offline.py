"""TensorFlow carried to a machine without a registry: what stays out of the libraries, pieces that come together again."""

import struct
import tarfile

from comparison import offline

import pytest


def container(*entries):
    """As CUDA's compiler writes it: entries are (kind, compute capability, payload)."""
    body = b"".join(
        struct.pack("<HHIQ", kind, 257, 64, len(payload)) + bytes(12) + struct.pack("<I", capability) + bytes(32) + payload
        for kind, capability, payload in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_only_one_generation_of_gpus_is_kept(tmp_path):
    library = tmp_path / "lib.so"
    names = b"name" + container((2, 80, b"ampere"), (2, 90, b"hopper"), (1, 90, b"text of hopper")) + b"more"
    names += container((2, 90, b"second")) + b"\x50\xed\x55\xba\x01\x00\x10\x00 no container" + bytes(40)
    library.write_bytes(names)
    offline.keep_generation(library, 90)
    kept = library.read_bytes()
    assert len(kept) == len(names), "the layout stays"
    assert kept == names.replace(b"ampere", bytes(6)).replace(b"text of hopper", bytes(14))


def test_pieces_are_unpacked_and_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "carried.py").write_text("print('here')\n" + "#" * 5000)
    archive = tmp_path / "site.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "carried.py", "site/carried.py")
    monkeypatch.setattr(offline, "PART", 3000)
    for k in range(-(-archive.stat().st_size // 3000)):
        (tmp_path / "pieces" / f"{k // 2:02}").mkdir(parents=True, exist_ok=True)
        offline.compress(archive, k, tmp_path / "pieces" / f"{k // 2:02}")
    monkeypatch.setattr(offline, "RUNS", [("good", 9, "* -c 'import carried'"), ("bad", 9, "* -m missing"), ("other", 9, "x")])
    offline.unpack(tmp_path / "pieces", tmp_path / "pieces-site")
    assert offline.run(tmp_path / "pieces-site/site", tmp_path / "out", ["good", "bad"]) == 1
    assert (tmp_path / "out" / "good.log").read_text() == "here\n"
    assert not [*tmp_path.glob("tmp*")]
    assert "bad: exit code 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("pack here", "here exists"),
        ("pack new", "new-site exists"),
        ("run pieces here", "here exists"),
        ("run here out", "cannot be unpacked: it lacks some of 000.xz"),
        ("run cut out", "cut cannot be unpacked"),
        ("run here out --only typo", "invalid choice: 'typo'"),
    ],
)
def test_nothing_of_others_is_touched(argv, words, tmp_path, monkeypatch, capsys):
    for name in ("here", "new-site", "cut"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "thesis.txt").write_text("mine")
    (tmp_path / "cut" / "000.xz").write_bytes(b"no archive")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["offline.py", *argv.split()])
    with pytest.raises(SystemExit) as ended:
        offline.main()
    assert ended.value.code == 2 and words in capsys.readouterr().err
    assert (tmp_path / "here" / "thesis.txt").read_text() == "mine" and not (tmp_path / "out").exists()

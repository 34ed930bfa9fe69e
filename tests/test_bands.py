"""Images with any number of bands, from their files to the network and to the pictures of them."""

import json

from common.config import Bands, Config, Size, UserError
from common.pictures import shown_bands
from data import bands, overview
from data.augment import augment
from data.files import count_bands, on_scale, read_image, read_mask
from data.layouts import find_channels, find_layout
from data.loader import load_examples, training_batches, validation_batches
from prediction.images import Source, predict_mask, save_overlay
from tests.drawn import save
from tests.helpers import refused

import numpy as np
import pytest
import tifffile
from PIL import Image

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 10_000, (24, 32, 12), dtype=np.uint16)
EIGHT = (DEEP // 40).astype(np.uint8)
MASK = (DEEP[..., 0] > 5000).astype(np.uint8)


def write(path, values, **options):
    """A .npy, or a TIFF of that many bands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        if options.get("planarconfig") == "separate":
            values = np.moveaxis(values, -1, 0)
        planar = {} if values.shape[-1] == 1 else {"planarconfig": "contig"}
        tifffile.imwrite(path, values, **{"photometric": "minisblack", **planar, **options})
    return path


def data_set(folder, suffix=".tif", channels=12, values=DEEP, n=5):
    for i in range(n):
        write(folder / f"images/{i}{suffix}", values[..., :channels])
        save(folder / f"masks/{i}.png", MASK)
    return folder


WAYS = {
    "interleaved": (".tif", {}),
    "planar": (".tif", {"planarconfig": "separate"}),
    "tiles": (".tif", {"tile": (16, 16), "compression": "deflate", "predictor": True}),
    "big-endian": (".tif", {"byteorder": ">", "planarconfig": "separate", "compression": "deflate"}),
    "BigTIFF": (".tif", {"bigtiff": True}),
    "colours and more": (".tif", {"photometric": "rgb", "extrasamples": "more"}),
    "array": (".npy", {}),
}


@pytest.mark.parametrize("channels", [2, 12])
@pytest.mark.parametrize("way", WAYS)
def test_bands_come_as_they_are_stored(tmp_path, way, channels):
    suffix, options = WAYS[way]
    if options.get("extrasamples"):
        options = {**options, "extrasamples": (0,) * (channels - 3)}
    if way == "colours and more" and channels == 2:
        return
    for values in (EIGHT[..., :channels], DEEP[..., :channels], DEEP[..., :channels] / np.float32(10_000)):
        if values.dtype == np.float32:
            options = {key: value for key, value in options.items() if key != "predictor"}  # of floats imagecodecs has it
        path = write(tmp_path / f"a{suffix}", values, **options)
        assert count_bands(path) == channels
        image = read_image(path, channels)
        assert image.dtype == values.dtype
        np.testing.assert_array_equal(image, values)
        half = read_image(path, channels, Size(12, 16))
        bands = [Image.fromarray(np.ascontiguousarray(image[..., k])).resize((16, 12), Image.BILINEAR) for k in range(channels)]
        np.testing.assert_array_equal(half, np.stack(bands, axis=-1))
        with refused(f"holds {channels} bands, but the network reads 3: all images"):
            read_image(path, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.int64, np.bool_])
@pytest.mark.parametrize("bands", [0, 1, 3])
def test_arrays_may_be_gray_or_colour(tmp_path, bands, dtype):
    values = RNG.integers(0, 2, (24, 32, bands) if bands else (24, 32)).astype(dtype)
    path = write(tmp_path / "a.npy", values)
    white = {"u": 1, "i": 1, "f": 1, "b": 255}[np.dtype(dtype).kind]
    image = read_image(path, 3)
    np.testing.assert_array_equal(image, np.repeat(white * values.reshape(24, 32, -1), 3 if bands != 3 else 1, axis=-1))
    assert read_image(path, 1).shape == (24, 32, 1) and count_bands(path) == max(bands, 1)
    if bands != 3:
        np.testing.assert_array_equal(read_mask(path), values.reshape(24, 32) * white)


def test_transparency_is_what_extrasamples_says(tmp_path):
    """Dropped where it is the same everywhere, whether Pillow reads the colours before it or they are four bands."""
    alpha = np.full((24, 32, 1), 255, np.uint8)
    for count, photometric in ((3, "rgb"), (4, "minisblack")):
        values = np.dstack([EIGHT[..., :count], alpha])
        extra = (0,) * (count - 1) * (photometric != "rgb") + (2,)
        path = write(tmp_path / "a.tif", values, photometric=photometric, extrasamples=extra)
        assert count_bands(path) == count
        np.testing.assert_array_equal(read_image(path, count), EIGHT[..., :count])
        values[0, 0, -1] = 7
        write(path, values, photometric=photometric, extrasamples=extra)
        with pytest.raises(UserError, match="transparency"):
            read_image(path, count)
    path = write(
        tmp_path / "b.tif", np.dstack([EIGHT[..., :3], alpha, EIGHT[..., 3:]]), photometric="rgb", extrasamples=(2, *[0] * 9)
    )
    np.testing.assert_array_equal(read_image(path, 12), EIGHT)


def test_photos_of_bands_come_upright(tmp_path):
    for orientation, turned in {1: DEEP, 3: DEEP[::-1, ::-1], 6: np.rot90(DEEP, -1), 8: np.rot90(DEEP)}.items():
        path = write(tmp_path / "a.tif", DEEP, extratags=[(274, "H", 1, orientation, True)])
        np.testing.assert_array_equal(read_image(path, 12), turned)
        assert read_image(path, 12, Size(8, 20)).shape == (8, 20, 12)


def test_previews_are_no_images(tmp_path):
    """A cloud-optimized GeoTIFF has a page of the image, and a smaller one of the same."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for image, kind in ((DEEP, 0), (DEEP[::2, ::2], 1)):
            file.write(image, photometric="minisblack", planarconfig="contig", subfiletype=kind)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 12), DEEP)


REFUSED = {
    "bands first": (".npy", np.moveaxis(DEEP, -1, 0), {}, "[12, 24, 32]: bands come last"),
    "a stack": (".npy", DEEP[None], {}, "uint16 [1, 24, 32, 12]: an image is [H, W] or"),
    "complex": (".npy", DEEP.astype(complex), {}, "complex128"),
    "complex TIFF": (".tif", DEEP.astype(np.complex64), {}, "12 bands of complex64: save it with"),
    "objects": (".npy", np.array([{}] * 9, object), {}, "Python objects"),
    "no number": (".tif", np.full((24, 32, 12), np.nan, np.float32), {}, "no finite floats of 0 and more"),
    "too bright": (".npy", np.full((24, 32, 12), 1e300), {}, "no finite floats of 0 and more"),
    "below 0": (".tif", DEEP.astype(np.int16) - 9999, {}, "outside of 0 to 65535"),
    "below 0, 8 bits": (".npy", np.full((24, 32, 12), -1, np.int8), {}, "outside of 0 to 65535"),
    "0 is white": (".tif", DEEP, {"photometric": "miniswhite"}, "0 is white"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_and_bands_that_are_refused(tmp_path, case):
    suffix, values, options, text = REFUSED[case]
    path = write(tmp_path / f"a{suffix}", values, **options)
    with refused(path, text):
        read_image(path, 12)


@pytest.mark.parametrize(
    "error", [ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package"), KeyError("imagecodecs")]
)
def test_compressions_that_take_a_package_say_so(tmp_path, monkeypatch, error):
    def asarray(self):
        raise error

    path = write(tmp_path / "a.tif", DEEP)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    with pytest.raises(UserError, match="pip install imagecodecs, or .*deflate"):
        read_image(path, 12)


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_memory_is_known_before_bands_are_read(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"a{suffix}", DEEP)
    monkeypatch.setattr(bands, "MAX_VALUES", 24 * 32 * 12 - 1)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="32x24 pixels of 12 bands by its header"):
        read_image(path, 12)


@pytest.mark.parametrize(
    "channels, suffix, cache",
    [(1, ".npy", None), (3, ".tif", None), (12, ".tif", "cache")],
)
def test_bands_reach_the_network(tmp_path, capsys, channels, suffix, cache):
    config = Config.of(
        dataset="folder", data_dir=data_set(tmp_path, suffix, channels), cache=cache and tmp_path / cache, augment="none",
        depth=2, batch_size=2, epochs=1, white=10_000,
    )  # fmt: skip
    for _ in range(2):
        found, training, validation = load_examples(config)
        words = {1: "gray", 3: "RGB"}.get(channels, f"{channels} bands")
        assert f"32x24 {words}, 16 bits with 10000 as white" in capsys.readouterr().out and found.network.channels == channels
        for batches in (training_batches(found, training), validation_batches(found, validation)):
            np.testing.assert_allclose(next(iter(batches))[0][0] * 10_000, DEEP[..., :channels], atol=0.01)


@pytest.mark.parametrize("suffix, channels", [(".tif", 3), (".npy", 12)])
def test_floats_have_one_white_in_a_data_set(tmp_path, suffix, channels):
    """What lies above is white, in training and in prediction; without it such floats are refused."""
    data_set(tmp_path, suffix, channels, DEEP / np.float32(4))  # 0 to 2500
    config = Config.of(dataset="folder", data_dir=tmp_path, depth=2, batch_size=2, epochs=1, augment="none", classes=1)
    with pytest.raises(UserError, match=r"outside of 0 to 1.*--white 2\d{3}"):
        load_examples(config)
    config, training, _ = load_examples(config.replace(white=1500))
    assert config.network.channels == channels and config.data.scale == 65535 and config.data.white == 1500
    np.testing.assert_allclose(training.images[0] / 65535, np.minimum(DEEP[..., :channels] / 6000, 1), atol=1e-5)
    predicted = predict_mask(lambda w: w[..., :1], Source(tmp_path / f"images/0{suffix}", None, "0"), config, 64, False)
    np.testing.assert_array_equal(predicted[0], training.images[0])
    restored = Config.from_dict(json.loads(json.dumps(config.as_dict())))
    assert restored == config and restored.data.scale == 65535, "1500.0 is of floats"


def floats_of(folder, *tops, suffix=".npy"):
    """Images of floats from 0 to each of the `tops`, or of whole numbers where that is one, and masks; how to read them."""
    for i, top in enumerate(tops):
        values = np.linspace(0, top, 24 * 32).reshape(24, 32, 1)
        write(folder / f"images/{i}{suffix}", values.astype(np.uint16 if isinstance(top, int) else np.float32))
        save(folder / f"masks/{i}.png", MASK)
    return Config.of(dataset="folder", data_dir=folder, depth=2, batch_size=2, epochs=1, augment="none", classes=1)


def test_floats_beside_whole_numbers_are_refused(tmp_path):
    with refused("1 of 4 images hold floats", " save images/2.npy as the others are"):
        load_examples(floats_of(tmp_path / "a", 4095, 4000, 1.0, 4095))
    with refused("1 of 4 images hold whole numbers of 16 bits", " save images/3.tif"):
        load_examples(floats_of(tmp_path / "b", 0.9, 1.0, 1.0, 4095, suffix=".tif"))


def test_prediction_takes_the_kind_of_the_training(tmp_path):
    for name, tops, other, words in (
        ("a", [0.9] * 4, 4095, "holds whole numbers of 16 bits, but the images to train on held floats"),
        ("b", [4095] * 4, 0.9, "holds floats, but the images to train on held whole numbers of 16 bits"),
    ):
        config, training, _ = load_examples(floats_of(tmp_path / name, *tops))
        assert load_examples(config)[0] == config == Config.from_dict(config.as_dict())
        floats_of(tmp_path / "other", tops[0], other)
        read = [Source(tmp_path / f"other/images/{i}.npy", None, str(i)) for i in range(2)]
        shown, *_ = predict_mask(lambda w: w[..., :1], read[0], config, 64, False)
        np.testing.assert_array_equal(shown, training.images[0])
        with pytest.raises(UserError, match=words):
            predict_mask(lambda w: w[..., :1], read[1], config, 64, False)


@pytest.mark.parametrize("top, white", [(1.0, 10_000.0), (1.0, 1e30), (1.0, 1e-30), (0.001, None), (1000.0, 2.0)])
def test_a_white_that_leaves_little_is_refused(tmp_path, top, white):
    with refused(f"floats of 0 to {top:g}, as in images/", f"of which little is left with {white or 1:g} as white"):
        load_examples(floats_of(tmp_path, *[top] * 4).replace(white=white))


def test_the_white_of_floats_is_white(tmp_path, capsys):
    """And the brightest value is not."""
    config, training, _ = load_examples(floats_of(tmp_path, *[0.5] * 4).replace(white=2.0))
    assert training.images[0].max() == pytest.approx(65535 / 4, abs=9) and "floats with 2 as white" in capsys.readouterr().out
    floats_of(tmp_path / "other", 4.0)
    predict_mask(lambda w: w[..., :1], Source(tmp_path / "other/images/0.npy", None, "0"), config, 64, False)
    assert "0.npy: 50.00% of its values lie above 2, the white of the training" in capsys.readouterr().err


def test_8_bits_among_floats_end_at_white():
    np.testing.assert_array_equal(on_scale(np.array([0, 51, 255], np.uint8), 0.5, "a.png"), [0, 65535 // 5, 65535])


def test_files_of_other_bands_are_named(tmp_path):
    folder = data_set(tmp_path)
    write(folder / "images/3.tif", DEEP[..., :4])
    config = Config.of(dataset="folder", data_dir=folder, depth=2, batch_size=2)
    with pytest.raises(UserError, match="3.tif holds 4 bands, but the network reads 12"):
        load_examples(config)
    Image.fromarray(EIGHT[..., :3]).save(folder / "images/3.tif")
    with pytest.raises(UserError, match="3.tif holds 3 bands, but the network reads 12"):
        load_examples(config)
    assert find_channels(find_layout(config)) == 12


@pytest.mark.parametrize("kind", ["none", "flips", "elastic", "paper", "photo", "recolor"])
@pytest.mark.parametrize("channels", [2, 13])
def test_light_changes_every_band_alike(kind, channels):
    """A band that is darker than the others stays a picture of the scene: its contrast is about its own mean."""
    image = np.ascontiguousarray(DEEP[..., :1] // np.array([1, *[50] * (channels - 1)], np.uint16))
    for seed in range(9):
        changed, mask = augment(image, MASK, (16, 16), kind, np.random.default_rng(seed), 10_000)
        assert changed.shape == (16, 16, channels) and changed.dtype == np.uint16 and set(np.unique(mask)) <= {0, 1}
        if kind in ("elastic", "paper"):
            light = changed[..., 1].astype(float).mean() - image[..., 1].mean()
            assert abs(light) <= 0.1 * 10_000 + 60, "brightness alone, and not the mean of the other bands"


def test_pictures_show_three_bands():
    values = np.arange(24).reshape(2, 1, 12)
    assert shown_bands(values)[0, 0].tolist() == [0, 1, 2]
    assert shown_bands(values, (3, 2, 12))[0, 0].tolist() == [2, 1, 11]
    assert shown_bands(values, (4,))[0, 0].tolist() == [3, 3, 3]
    assert shown_bands(values[..., :1])[1, 0].tolist() == [12, 12, 12]
    assert shown_bands(values[..., :2])[1, 0].tolist() == [12, 13, 0]
    assert Bands.parse("3,2,1") == (3, 2, 1) and str(Bands.parse("8")) == "8"
    for text in ("0", "1,2", "1,2,3,4", "a", ""):
        with pytest.raises(Exception, match="one or three"):
            Bands.parse(text)
    with pytest.raises(UserError, match="gray or RGB"):
        load_examples(Config.of(channels=12, depth=2, images=4))


def test_the_overview_shows_the_bands_that_are_named_or_the_colour(tmp_path, monkeypatch, capsys):
    """The colour also of what is read as gray."""
    shown = []
    monkeypatch.setattr(overview, "overlay", lambda *args: shown.append(args[0]) or np.zeros((8, 8, 3)))
    bands, colour = data_set(tmp_path / "bands", n=2), data_set(tmp_path / "colour", ".npy", 3, n=2)
    options = ["--dataset", "folder", "--depth", "2", "--batch-size", "1", "--output", str(tmp_path / "o")]
    assert overview.main([*options, "--data-dir", str(bands), "--white", "10000", "--show-bands", "12,1,4"]) == 0
    assert "12 bands; the network reads 12 channels; 16 bits" in capsys.readouterr().out
    np.testing.assert_allclose(shown[0], DEEP[..., [11, 0, 3]] * 0.0255, atol=0.51)
    shown.clear()
    overview.main([*options, "--data-dir", str(colour), "--channels", "1", "--overwrite"])
    assert "2 RGB; the network reads 1 channel" in capsys.readouterr().out and np.ptp(shown[0], axis=-1).max() > 9


def test_prediction_and_its_overlay(tmp_path):
    config = Config.of(channels=12, classes=1, depth=1, white=10_000, show_bands=(3, 2, 1), dataset="folder", data_dir=tmp_path)
    source = Source(write(tmp_path / "a.tif", DEEP), None, "a")
    image, mask, _ = predict_mask(lambda window: window[..., :1], source, config, 64, True)
    np.testing.assert_array_equal(mask, DEEP[..., 0] >= 5000)
    save_overlay(tmp_path / "o.png", image, mask, config)
    overlay = np.asarray(Image.open(tmp_path / "o.png"))
    np.testing.assert_allclose(overlay[mask == 0], DEEP[mask == 0][:, [2, 1, 0]] * 0.0255, atol=0.51)


def test_pages_in_a_circle_are_counted_once(tmp_path):
    """The last page of a damaged file names the first as the next one: tifffile iterates over that for ever."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((3, 4, 4), np.uint8), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[len(file.pages) - 1].offset
    data = bytearray(path.read_bytes())
    entries = int.from_bytes(data[last : last + 2], "little")
    data[last + 2 + 12 * entries : last + 6 + 12 * entries] = first.to_bytes(4, "little")
    path.write_bytes(data)
    assert bands.images_in(path) == [0], "what it holds beside the first, nobody can tell"

"""Augmentation: image and mask move together, nothing is invented, and every range is what it says."""

from common.streams import AUGMENT, generator
from data import augment as augmentation
from data.augment import augment, displacements, flips, node_grid, random_crop, recolor, sample, spline, tone_curves
from data.synthetic import make_cells

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

KINDS = ("none", "flips", "elastic", "paper", "photo", "recolor")
NOISE = np.random.default_rng(0).integers(0, 256, (41, 56, 3), dtype=np.uint8)
LABELS = np.kron(np.random.default_rng(1).choice([0, 2, 7, 255], (6, 7)), np.ones((8, 8)))[:41].astype(np.uint8)


def neutral(size, shape):
    """Nodes that leave the central window of an image as it is."""
    return node_grid(size, np.eye(2), [(n - 1) / 2 for n in shape])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(41, 56), (32, 32), (17, 40), (40, 17)])
@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bits_of_one_shape_and_no_new_classes(kind, size, channels):
    image, before = NOISE[..., :channels], NOISE.copy()
    results = [augment(image, LABELS, size, kind, generator(7, AUGMENT, epoch, 0)) for epoch in (0, *range(9))]
    for augmented, mask in results:
        assert augmented.shape == (*size, channels) and mask.shape == size
        assert augmented.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 2, 7, 255} and len(np.unique(mask)) > 1
    for first, second in zip(*results[:2]):
        np.testing.assert_array_equal(first, second)
    different = any((results[0][0] != other).any() for other, _ in results[2:])
    assert different == (kind != "none" or size != LABELS.shape)
    np.testing.assert_array_equal(NOISE, before)
    void = np.full_like(LABELS, 255)
    np.testing.assert_array_equal(augment(NOISE, void, size, kind, np.random.default_rng(0))[1], 255)


def test_kinds_are_the_crop_and_then_the_symmetry():
    """In this order, from one stream: the draws are part of what --seed means."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        crop = random_crop(NOISE, LABELS, (24, 24), rng)
        flipped = flips(*crop, rng)
        for kind, expected in (("none", crop), ("flips", flipped)):
            for a, b in zip(augment(NOISE, LABELS, (24, 24), kind, np.random.default_rng(seed)), expected):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_larger_than_the_image_is_refused(kind):
    with pytest.raises(ValueError):
        augment(NOISE, LABELS, (42, 20), kind, np.random.default_rng(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_neutral_parameters_change_nothing(channels):
    image = NOISE[..., :channels]
    for result, expected in zip(sample(image, LABELS, (41, 56), neutral((41, 56), (41, 56))), (image, LABELS)):
        np.testing.assert_array_equal(result, expected)
    for result, expected in zip(sample(image, LABELS, (21, 30), neutral((21, 30), (41, 56))), (image, LABELS)):
        np.testing.assert_array_equal(result, expected[10:31, 13:43])


def test_right_angles_are_numpys():
    """A turn that rounding cannot reach: what `rot90` and slices give, so neither axes nor signs are exchanged."""
    for turn, expected in (
        ([[0, 1], [-1, 0]], np.rot90(NOISE[:, :41])),
        ([[1, 0], [0, -1]], NOISE[:, 40::-1]),
        ([[0, 1], [1, 0]], NOISE[:, :41].swapaxes(0, 1)),
    ):
        nodes = node_grid((41, 41), np.array(turn), (20, 20))
        np.testing.assert_array_equal(sample(NOISE, LABELS, (41, 41), nodes)[0], expected)


def test_what_lies_outside_is_mirrored():
    """As numpy's "reflect", which the padding of the network and the paper's are too; far outside again and again."""
    image, mask = NOISE[:9, :11], LABELS[:9, :11]
    window, labels = sample(image, mask, (41, 45), neutral((41, 45), (9, 11)))
    np.testing.assert_array_equal(window, np.pad(image, ((16, 16), (17, 17), (0, 0)), "reflect"))
    np.testing.assert_array_equal(labels, np.pad(mask, ((16, 16), (17, 17)), "reflect"))
    assert sample(image[:2, :2], mask[:2, :2], (5, 4), neutral((5, 4), (2, 2)))[0].shape == (5, 4, 3)


def test_sampling_is_bilinear_and_nearest():
    """Against scipy, at places between the pixels and outside.

    OpenCV rounds a place to 1/32 of a pixel: by 1/64 in each direction at most, over which noise changes by 255/64.
    """
    rng, size = np.random.default_rng(3), (37, 33)
    nodes = neutral(size, LABELS.shape) + rng.normal(0, 6, (2, 3, 3))
    places = spline(37) @ nodes @ spline(33).T
    image, mask = sample(NOISE, LABELS, size, nodes)
    for c in range(3):
        expected = map_coordinates(NOISE[..., c].astype(float), places, order=1, mode="mirror")
        np.testing.assert_allclose(image[..., c], expected, atol=2 * 255 / 64 + 1)
        assert np.abs(image[..., c] - expected).mean() < 2, "and half of that at the most on average"
    assert np.mean(mask != map_coordinates(LABELS, places, order=0, mode="mirror")) < 0.03, "but halfway between two"


@pytest.mark.parametrize("size", [(96, 96), (64, 90), (128, 128)])
def test_mask_and_image_move_together(size):
    """The mask is painted into the image, and read off it again at half height: less than half a pixel beside it."""
    _, masks = make_cells(4, (128, 128), seed=2)
    for i, mask in enumerate(masks):
        image, moved = augment(255 * mask[..., None], mask, size, "paper", np.random.default_rng(i))
        moved, shown = moved.astype(bool), image[..., 0] > (image.min() / 2 + image.max() / 2)
        assert 0.05 < moved.mean() < 0.95
        shifted = [np.roll(moved, shift, axis) for axis in (0, 1) for shift in (-1, 1)]
        # where the outline turns a corner within a pixel, bilinear and nearest part
        assert (moved != shown).mean() < 0.3 * min((other != shown).mean() for other in shifted)


def test_displacements_are_the_papers():
    rng = np.random.default_rng(0)
    drawn = np.stack([displacements((512, 512), rng) for _ in range(1000)])  # [1000, 2, 3, 3]
    # 1000 draws of a standard deviation: 2 % off is one sigma, 18 of them stay within 10 %
    np.testing.assert_allclose(drawn.std(axis=0), 10, rtol=0.1)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=1.2)  # 10 / 1000**0.5 is one sigma
    assert displacements((48, 600), rng).std() < 8  # 4 pixels where 10 would fold the image over; 18 draws

    weights = spline(129).astype(float)
    np.testing.assert_allclose(weights[[0, 64, 128]], np.eye(3), atol=1e-6)  # float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(weights @ [0, 64, 128], np.arange(129), atol=1e-4)  # straight lines stay straight
    field = weights @ drawn[0, 0] @ weights.T
    # smooth: two nodes 64 pixels apart differ by some 10 pixels, so neighbours by less than one, their slopes by far less
    assert np.abs(np.diff(field, axis=0)).max() < 1
    assert np.abs(np.diff(field, 2, axis=0)).max() < 0.03


def drawn_parameters(monkeypatch, image, kind, count=400):
    """What `deform` hands to `sample`: nodes without elastic displacements [n, 2, 3, 3], contrast [n], brightness [n]."""
    calls = []
    monkeypatch.setattr(augmentation, "displacements", lambda size, rng: 0)
    monkeypatch.setattr(augmentation, "sample", lambda *args: calls.append(args[3:6]) or args[:2])
    for seed in range(count):
        augment(image, image[..., 0], (41, 31), kind, np.random.default_rng(seed))
    return [np.array(values) for values in zip(*calls)]


@pytest.mark.parametrize("kind", ["elastic", "paper", "photo", "recolor"])
def test_ranges_of_angle_scale_place_and_light(monkeypatch, kind):
    for name in ("recolor", "another_camera"):  # have ranges of their own
        monkeypatch.setattr(augmentation, name, lambda image, *_: image)
    monkeypatch.setattr(augmentation, "REACH", 3)  # all of the image
    nodes, contrast, brightness = drawn_parameters(monkeypatch, np.full((61, 71, 1), 100, np.uint8), kind)
    down = (nodes[:, :, 2, 1] - nodes[:, :, 0, 1]) / 40  # what a pixel down the window is in the image
    right = (nodes[:, :, 1, 2] - nodes[:, :, 1, 0]) / 30
    scale = np.linalg.norm(down, axis=1)
    np.testing.assert_allclose(np.linalg.norm(right, axis=1), scale)
    np.testing.assert_allclose((down * right).sum(1), 0, atol=1e-9)
    zoom = np.log(scale) / np.log(2 if kind == "photo" else 1.25)
    assert -1 <= zoom.min() < -0.9 and 0.9 < zoom.max() <= 1 and abs(zoom.mean()) < 0.09  # 3 sigma
    widest = np.pi if kind == "paper" else np.pi / 18  # photographs stay upright
    angle = np.arctan2(down[:, 1], down[:, 0])
    assert np.abs(angle).max() <= widest
    assert np.histogram(angle, 8, (-widest, widest))[0].min() > 25  # 50 expected, 7 is a sigma
    mirrored = down[:, 0] * right[:, 1] - down[:, 1] * right[:, 0] < 0
    assert not mirrored.any() if kind == "elastic" else 0.4 < mirrored.mean() < 0.6  # a sigma is 0.025
    np.testing.assert_array_equal(nodes[:, :, 1, 1].min(0), (20, 15))  # the first window and the last
    np.testing.assert_array_equal(nodes[:, :, 1, 1].max(0), (40, 55))
    reach = scale[:, None] * (41, 31) / 2  # from the centre of a window that is not tilted to its border
    inside = np.minimum(nodes[:, :, 1, 1], (60, 70) - nodes[:, :, 1, 1]) + 0.5 >= reach - 1e-9
    fits = reach <= (30.5, 35.5)
    assert inside[fits].all() and (nodes[:, :, 1, 1] == (30, 35))[~fits].all(), "or in the middle"
    assert 0.75 <= contrast.min() < 0.76 and 1.32 < contrast.max() <= 4 / 3
    light = contrast * 100 + brightness - 100  # of an evenly gray image: contrast does not change it
    assert -25.5 <= light.min() < -25 and 25 < light.max() <= 25.5


def test_another_camera_turns_colours_around_gray_and_blurs_half(monkeypatch):
    monkeypatch.setattr(augmentation, "EXPOSURE", 1)
    y, x = np.mgrid[:40, :40]
    gray = np.repeat((6 * y)[..., None], 3, -1).astype(np.uint8)
    red = np.zeros((40, 40, 3), np.uint8) + np.uint8([150, 90, 90])
    hue, saturation, blurred = [], [], []
    for seed in range(400):
        shown = augmentation.another_camera(np.hstack([gray, red]), np.random.default_rng(seed))
        assert np.ptp(shown[:, :36].astype(int), axis=-1).max() <= 1, "gray stays gray"
        r, g, b = shown[20, 60].astype(float)
        assert abs(r + g + b - 330) <= 2
        hue.append(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b))
        saturation.append(np.hypot(np.sqrt(3) * (g - b), 2 * r - g - b) / 120)
        blurred.append((shown[:, 40] != shown[:, 60]).any())
    assert np.pi / 11 < np.max(np.abs(hue)) < np.pi / 9 and abs(np.mean(hue)) < 0.03  # 8 bits round by 0.01; a sigma is 0.009
    assert 0.48 < min(saturation) < 0.52 and 1.48 < max(saturation) < 1.52
    assert 0.3 < np.mean(blurred) < 0.5, "half, of which the least blurred round to the same"
    monkeypatch.setattr(augmentation, "BLUR", 0.1)
    bands = NOISE[..., :2]
    np.testing.assert_array_equal(augmentation.another_camera(bands, np.random.default_rng(0)), bands, "not a colour")


@pytest.mark.parametrize("white, kind", [(255, np.uint8), (4095, np.uint16)])
def test_another_camera_exposes_from_dusk_to_day(monkeypatch, white, kind):
    """Black and white stay, what lies between gets darker or lighter by one curve for all bands, a dark one of them too."""
    monkeypatch.setattr(augmentation, "BLUR", 0.1)
    ramp = np.linspace(0, white, 64).round().astype(kind)
    image = np.stack([ramp, ramp // 2], axis=-1)[None]
    gammas = []
    for seed in range(400):
        shown = augmentation.another_camera(image, np.random.default_rng(seed), white)
        assert shown.dtype == kind and shown.shape == image.shape and (np.diff(shown[..., 0].astype(int)) >= 0).all()
        assert shown[0, [0, -1], 0].tolist() == [0, white]
        bands = shown[0, ..., 1] / white, shown[0, ..., 0] / white
        gamma = np.log2(np.log(bands[1][32]) / np.log(ramp[32] / white))
        np.testing.assert_allclose(bands[0], (image[0, :, 1] / white) ** 2**gamma, atol=0.02)  # 8 bits round by 0.002
        gammas.append(gamma)
    assert -1.02 < min(gammas) < -0.97 and 0.97 < max(gammas) < 1.02 and abs(np.mean(gammas)) < 0.09  # 3 sigma


@pytest.mark.parametrize("cut, channels", [(0, 1), (1, 3)])
def test_every_region_has_colours_of_its_own(monkeypatch, cut, channels):
    """A pixel's new value follows from its old one and its region alone, void too; half of the regions stay as they are."""
    left = np.arange(LABELS.shape[1]) < 28
    monkeypatch.setattr(augmentation, "random_part", lambda size, rng: np.broadcast_to(left, size))
    monkeypatch.setattr(augmentation, "CUT", cut)
    parts = [left, ~left] if cut else [True]
    image = np.repeat(NOISE[..., :1] // 2, channels, axis=-1)  # 128 values, so that many occur everywhere
    regions = [(LABELS == value) & part for value in (0, 2, 7, 255) for part in parts]
    kept = np.zeros((200, len(regions)), bool)
    for seed, kept_regions in enumerate(kept):
        recolored = recolor(image, LABELS, np.random.default_rng(seed))
        assert recolored.shape == image.shape and recolored.dtype == np.uint8
        curves = np.full((len(regions), channels, 256), -1)
        for curve, region in zip(curves, regions):
            for c in range(channels):
                curve[c, image[region][:, c]] = recolored[region][:, c]
                np.testing.assert_array_equal(recolored[region][:, c], curve[c, image[region][:, c]])
        common = np.flatnonzero((curves >= 0).all(axis=(0, 1)))  # values that occur in every region
        assert len(common) > 15
        kept_regions[:] = [(curve[:, common] == common).all() for curve in curves]
        changed = curves[~kept_regions][..., common]
        assert len(np.unique(changed, axis=0)) == len(changed)
    np.testing.assert_allclose(kept.mean(axis=0), 0.5, atol=0.12)  # a sigma is 0.035
    # every region goes by itself: a binomial distribution, whose standard deviation is that, and whose error is 5 %
    np.testing.assert_allclose(kept.sum(axis=1).std(), len(regions) ** 0.5 / 2, rtol=0.2)


def test_colours_are_lost_in_some_images_and_the_arguments_stay():
    before, labels, one = NOISE.copy(), LABELS.copy(), np.zeros_like(LABELS)
    recolored = np.array([recolor(NOISE, one, np.random.default_rng(seed)) for seed in range(400)])
    recolor(NOISE, LABELS, np.random.default_rng(0))
    np.testing.assert_array_equal(NOISE, before)
    np.testing.assert_array_equal(LABELS, labels)
    unchanged, gray = (recolored == NOISE).all(axis=(1, 2, 3)), (recolored == recolored[..., :1]).all(axis=(1, 2, 3))
    # 1/2 of the images that are whole and 1/4 of those cut in two keep what they have: 3/8, of 3/4 and of 1/4
    np.testing.assert_allclose(unchanged.mean(), 0.281, atol=0.09)  # a sigma is 0.022
    np.testing.assert_allclose(gray.mean(), 0.094, atol=0.06)  # a sigma is 0.015
    np.testing.assert_allclose(recolored[gray][0, ..., 0], NOISE @ (0.299, 0.587, 0.114), atol=1)  # ITU-R 601, rounded


def test_half_of_the_images_are_cut_into_large_parts():
    parts = np.array([augmentation.random_part((41, 56), np.random.default_rng(seed)) for seed in range(200)])
    assert parts.dtype == bool and parts.shape == (200, 41, 56)
    np.testing.assert_allclose(parts.mean(), 0.5, atol=0.08)  # the share of one part spreads by 0.25: a sigma is 0.018
    assert (parts.any(axis=(1, 2)) & ~parts.all(axis=(1, 2))).mean() > 0.95  # nine random signs are seldom the same
    for axis in (1, 2):  # a natural spline through three values bends one way only: it crosses zero twice at most
        assert np.diff(parts.astype(int), axis=axis).astype(bool).sum(axis=axis).max() <= 2

    ramp = np.broadcast_to(np.arange(56, dtype=np.uint8)[:, None], (41, 56, 1))
    cut = 0
    for seed in range(400):
        recolored = recolor(ramp, np.zeros((41, 56), np.uint8), np.random.default_rng(seed))
        cut += (recolored != recolored[:1]).any()  # without a cut equal columns stay equal
    np.testing.assert_allclose(cut / 400, 0.5 * 0.75, atol=0.1)  # of those cut, a quarter keeps both halves


def test_of_a_large_image_only_the_part_around_the_window_is_recoloured(monkeypatch):
    parts = []
    monkeypatch.setattr(augmentation, "recolor", lambda image, mask, rng, white: parts.append(image) or image)
    image = np.broadcast_to(np.arange(41, dtype=np.uint8)[:, None, None], (41, 56, 1))  # every row holds its number
    for seed in range(200):
        assert augment(image, LABELS, (13, 31), "recolor", np.random.default_rng(seed))[0].shape == (13, 31, 1)
    assert {part.shape for part in parts} == {(26, 56, 1)}
    assert {part[0, 0, 0] for part in parts} == set(range(16))


def test_tone_curves_make_anything_of_any_value(monkeypatch):
    def drawn(channels):
        return np.array([tone_curves(channels, np.random.default_rng(seed)) for seed in range(1000)]).astype(int)

    curves = drawn(3)
    assert curves.shape == (1000, 3, 256)
    for value in (0, 40, 128, 255):  # dark and light become dark and light
        assert np.histogram(curves[:, 0, value], 8, (0, 256))[0].min() > 40  # 125 expected
    apart = (curves - curves.mean(axis=1, keepdims=True)) * 1.5**0.5  # of 3 channels
    assert 16 < apart.std() < 32  # 32 at the knots, less between them and where black and white cut it off
    assert np.median(np.abs(np.diff(curves)).max(axis=-1)) < 12  # smooth: neighbours stay neighbours

    monkeypatch.setattr(augmentation, "TINT", 0)
    curves = drawn(3)
    assert (curves == curves[:, :1]).all()
    steps = np.diff(curves[:, 0])
    rising, falling = (steps >= 0).all(axis=1).mean(), (steps <= 0).all(axis=1).mean()
    # a quarter each on purpose, and of the other half those 1 in 24 whose four knots happen to be in order
    np.testing.assert_allclose([rising, falling], 0.271, atol=0.06)  # a sigma is 0.014


def test_light_is_cut_off_at_black_and_white():
    size = LABELS.shape
    for contrast, brightness in ((1.3, 20), (1.3, -100), (0.5, 0.2)):
        image, mask = sample(NOISE, LABELS, size, neutral(size, size), contrast, brightness)
        np.testing.assert_allclose(image, (NOISE * contrast + brightness).clip(0, 255), atol=0.51)
        np.testing.assert_array_equal(mask, LABELS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("white", [200, 5100, 65535])
def test_16_bits_are_augmented_on_their_own_scale(kind, white):
    """The same random numbers make of an image on another scale the same picture, and no value leaves the scale."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    mask = (image[..., 0] > 128).astype(np.uint8)
    deep = np.rint(image * (white / 255)).astype(np.uint8 if white < 256 else np.uint16)
    shown, labels = augment(image, mask, (24, 32), kind, np.random.default_rng(1))
    found, same = augment(deep, mask, (24, 32), kind, np.random.default_rng(1), white)
    assert found.dtype == deep.dtype and found.max() <= white
    np.testing.assert_array_equal(labels, same)
    # 3: rounding of the image, of its gray version and of its curve; white 200 has fewer steps, and a steep curve widens them
    difference = abs(found * (255 / white) - shown)
    assert np.median(difference) <= 1.5 and difference.mean() < 3

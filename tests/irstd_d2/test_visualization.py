"""Pictures: marks stay off the targets, insets show them, odd sizes and names work."""

import cv2
import numpy as np
import pytest
from loops import for_every

from irstd_d2.visualization import (
    FALSE_COLOUR,
    INSET_PIXELS,
    INSET_ZOOM,
    TARGET_COLOUR,
    TEXT_COLOUR,
    TRUE_COLOUR,
    choose_parts,
    contact_sheet,
    draw_brackets,
    draw_detections,
    enlarge,
    to_bytes,
    with_caption,
    write_picture,
    write_scores,
)


def has(picture, colour):
    return bool((picture == np.array(colour, np.uint8)).all(-1).any())


@for_every("zoom", [1, 4])
@for_every("gap", [1, 4])
def test_brackets_surround_a_target_without_touching_it(zoom, gap):
    canvas = np.zeros((40 * zoom, 40 * zoom, 3), np.uint8)
    box = np.array([18, 20, 21, 23])
    draw_brackets(canvas, box, TARGET_COLOUR, zoom=zoom, gap=gap)
    ys, xs = np.nonzero(canvas.any(-1))
    assert not canvas[20 * zoom : 23 * zoom, 18 * zoom : 21 * zoom].any()
    assert (xs.min(), ys.min()) == (18 * zoom - gap - 1, 20 * zoom - gap - 1)
    assert (xs.max(), ys.max()) == (21 * zoom + gap, 23 * zoom + gap)


def test_a_range_is_stretched_and_pixels_are_repeated():
    image = np.array([[[10.0] * 3, [30.0] * 3]])
    np.testing.assert_array_equal(to_bytes(image)[0, :, 0], [0, 255])
    np.testing.assert_array_equal(to_bytes(np.full((2, 2, 3), 7.0)), 0)
    np.testing.assert_array_equal(enlarge(image, 2)[..., 0], [[10, 10, 30, 30]] * 2)


def test_a_target_of_three_pixels_is_seen_in_its_inset():
    image = np.zeros((100, 120, 3), np.float32)
    image[50:53, 60:63] = 200
    picture = draw_detections(image, targets=[[60, 50, 63, 53]], edge=240, insets=2)
    assert picture.shape == (INSET_PIXELS * INSET_ZOOM + 4, 240 + 4 + INSET_PIXELS * INSET_ZOOM + 4, 3)
    white = (picture[:, 248:] == 255).all(-1)
    assert white.sum() >= (3 * INSET_ZOOM) ** 2
    assert has(picture[:, 248:], TARGET_COLOUR)


def test_colours_tell_hits_from_false_alarms():
    image = np.zeros((64, 64, 3))
    boxes, scores = [[10, 10, 13, 13], [40, 40, 43, 43]], [0.9, 0.4]
    picture = draw_detections(image, boxes=boxes, scores=scores, correct=[True, False], insets=1)
    inset = picture[:, 64 * 8 + 4 :]
    assert has(picture, TRUE_COLOUR)
    assert has(picture, FALSE_COLOUR)
    assert has(inset, TRUE_COLOUR)  # the best detection has the inset
    assert not has(inset, FALSE_COLOUR)
    assert not has(draw_detections(image, boxes=boxes, scores=scores), FALSE_COLOUR)


def test_an_image_without_anything_is_only_enlarged():
    image = np.random.default_rng(0).random((30, 40, 3))
    assert draw_detections(image, edge=80).shape == (60, 80, 3)
    assert draw_detections(image, edge=30).shape == (30, 40, 3)
    assert draw_detections(image, edge=20).shape == (15, 20, 3)


def test_marks_are_where_they_belong_in_a_reduced_image():
    picture = draw_detections(np.zeros((1000, 2000, 3)), targets=[[1600, 400, 1603, 403]], edge=500, insets=1)
    ys, xs = np.nonzero((picture[:250, :500] == TARGET_COLOUR).all(-1))
    assert (xs.min() + xs.max()) / 2 == pytest.approx(1601.5 / 4, abs=1)
    assert (ys.min() + ys.max()) / 2 == pytest.approx(401.5 / 4, abs=1)


def test_the_skyline_is_drawn():
    sky = np.zeros((30, 40), bool)
    sky[:10] = True
    picture = draw_detections(np.zeros((30, 40, 3)), sky=sky, edge=40)
    assert picture[9].any(-1).all()
    assert not picture[15:].any()


@for_every("size", [(1, 1), (5, 200), (20, 31), (300, 10)])
def test_images_smaller_than_an_inset(size):
    height, width = size
    picture = draw_detections(
        np.ones((*size, 3)), boxes=[[0, 0, width, height]], scores=[0.5], targets=[[0, 0, 1, 1]], edge=64
    )
    assert picture.dtype == np.uint8
    assert picture.shape[0] >= height


def test_detections_beyond_the_border_and_in_thousands():
    rng = np.random.default_rng(1)
    corner = rng.uniform(-5, 70, (3000, 2))
    picture = draw_detections(
        rng.random((64, 64, 3)), boxes=np.concatenate([corner, corner + 3], 1), scores=rng.random(3000)
    )
    assert has(picture, TRUE_COLOUR)


def test_thick_brackets_grow_outwards():
    canvas = np.zeros((40, 40, 3), np.uint8)
    draw_brackets(canvas, np.array([18, 20, 21, 23]), TARGET_COLOUR, gap=2, thickness=3)
    ys, xs = np.nonzero(canvas.any(-1))
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (13, 25, 15, 27)
    assert not canvas[18:25, 16:23].any()


def test_insets_below_and_at_given_places_look_alike_whatever_is_detected():
    image = np.random.default_rng(0).random((90, 120, 3))
    parts = {"insets": [(0, 0, 32), (88, 58, 32)], "inset_zoom": 4, "below": True, "edge": 300}
    plain = draw_detections(image, **parts)
    assert plain.shape == (225 + 4 + 132, 300, 3)
    marked = draw_detections(image, boxes=[[100, 70, 104, 74]], scores=[0.4], correct=[False], **parts)
    first, second = slice(0, 132), slice(132, 264)
    np.testing.assert_array_equal(plain[229:, first], marked[229:, first])
    assert has(marked[229:, second], FALSE_COLOUR)
    assert has(marked[229:, second], TEXT_COLOUR)
    tall = draw_detections(image.transpose(1, 0, 2), insets=[(0, 0, 32)], below=True, edge=45)
    assert tall.shape == (60 + 4 + INSET_PIXELS * INSET_ZOOM + 4, INSET_PIXELS * INSET_ZOOM + 4, 3)


def test_an_inset_has_its_own_range():
    image = np.zeros((64, 64, 3))
    image[2, 2] = 1000
    image[50:53, 50:53] = 1
    picture = draw_detections(image, targets=[[50, 50, 53, 53]], insets=1, edge=64)
    inset = picture[:, 68:]
    assert (inset == 255).all(-1).sum() == (3 * INSET_ZOOM) ** 2
    assert picture[45:60, 45:60].max() < 255


def test_parts_worth_a_look():
    boxes = np.array([[50, 50, 53, 53], [55, 48, 58, 51], [0, 0, 3, 3], [90, 90, 93, 93]], float)
    assert choose_parts(boxes, 2, (100, 100)) == [(36, 36, 32), (0, 0, 32)]
    assert choose_parts(boxes[3:], 3, (100, 100)) == [(68, 68, 32)]
    assert choose_parts([], 3, (100, 100)) == []
    assert choose_parts(boxes, 0, (100, 100)) == []


@for_every("box", [(100, 90, 140, 110), (20, 30, 90, 44), (10, 12, 190, 150), (0, 0, 200, 160)])
def test_the_inset_of_a_large_target_shows_its_whole_mark(box):
    ((x, y, side),) = choose_parts(np.array([box], float), 3, (160, 200))
    assert side % INSET_PIXELS == 0
    assert x <= box[0] < box[2] <= x + side
    assert y <= box[1] < box[3] <= y + side
    picture = draw_detections(np.zeros((160, 200, 3)), boxes=[box], scores=[0.5], edge=200, insets=1)
    assert picture.shape[1] == 200 + 4 + INSET_PIXELS * INSET_ZOOM + 4
    assert has(picture[:, 206:-2], TRUE_COLOUR)


def scores_written(boxes, scores, targets=None, size=100):
    canvas = np.zeros((size, size, 3), np.uint8)
    write_scores(canvas, np.array(boxes, float), np.array(scores), np.zeros(2), 1, targets=targets)
    ys = np.nonzero((canvas == TEXT_COLOUR).all(-1))[0]
    return (int(ys.min()), int(ys.max())) if len(ys) else None


def test_scores_keep_off_detections_targets_and_borders():
    box = [20, 40, 30, 50]
    top, bottom = scores_written([box], [0.5])
    assert 50 < top < bottom < 70
    top, bottom = scores_written([box], [0.5], targets=np.array([[25.0, 58.0, 35.0, 68.0]]))
    assert 15 < top < bottom < 40
    assert scores_written([box], [0.5], targets=np.array([[0.0, 51.0, 99.0, 99.0], [0.0, 0.0, 99.0, 39.0]])) is None
    assert scores_written([[80, 40, 99, 50]], [0.5]) is None  # no room to the right
    top, bottom = scores_written([[20, 80, 30, 95]], [0.5])
    assert bottom < 80


def test_captions_are_cut_to_the_picture():
    picture = np.full((10, 30, 3), 7, np.uint8)
    captioned = with_caption(picture, "目标 a very long name " * 9)
    assert captioned.shape == (30, 30, 3)
    assert captioned[:20].max() > 200
    np.testing.assert_array_equal(captioned[20:], picture)


def test_sheets_hold_pictures_of_different_sizes(tmp_path):
    pictures = [np.full((h, w, 3), 200, np.uint8) for h, w in ((10, 20), (30, 5), (8, 8), (4, 4))]
    sheet = contact_sheet(pictures, columns=3)
    assert sheet.shape == (36 + 10, 26 + 11 + 14, 3)
    assert (sheet == 200).sum() == sum(p.size for p in pictures)
    path = tmp_path / "Bögen 目标.png"
    write_picture(path, pictures[0] * [1, 0, 0])
    decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[0, 0], [0, 0, 200])


def test_what_cannot_be_encoded_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "imencode", lambda *args: (False, None))
    with pytest.raises(ValueError, match=r"could not encode a picture of shape \(2, 2, 3\)"):
        write_picture(tmp_path / "x.png", np.zeros((2, 2, 3), np.uint8))

"""The context stream: what samples carry, where maps are looked up, the balanced loss, the detector, tiles, exports."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from bafe_d2.data.context import area_weights, context_image, context_mask, fit, window_of
from bafe_d2.modeling.context import Context, context_of_images, context_sky_loss, sampling_of_level
from irstd_d2 import get_config
from irstd_d2.engine.checkpoint import refuse_frozen_random
from irstd_d2.errors import ConfigError
from irstd_d2.export.graphs import build_graph
from irstd_d2.inference import DetectorWithTTA, TiledPredictor

FINE = "configs/bafe/tiny/bafe_fine.yaml"


def noise(*shape):
    return np.random.default_rng(0).random(shape, np.float32) * 255


@pytest.mark.parametrize("shape", [(16, 20), (33, 47), (5, 30), (31, 7, 3), (3, 4, 3), (90, 8)])
def test_cells_are_means_over_areas(shape):
    image, size = noise(*shape), (8, 10)
    fitted = fit(shape[:2], size)
    lengths, cells = (torch.tensor(pair, dtype=torch.float32) for pair in (shape[:2], fitted))
    rows, columns = (area_weights(lengths[i : i + 1], cells[i : i + 1], shape[i], fitted[i])[0] for i in (0, 1))
    gray = torch.from_numpy(image if image.ndim == 2 else image.mean(2))
    expected = rows.double() @ gray.double() @ columns.double().T
    torch.testing.assert_close(context_image(image, size).double(), expected, atol=0.01, rtol=1e-4)
    bands = []
    by_rows = context_image(image, size, lambda part: bands.append(len(part)) or part)
    torch.testing.assert_close(by_rows.double(), expected, atol=0.01, rtol=1e-4)
    if shape[0] > fitted[0]:
        assert max(bands) <= shape[0] / fitted[0] + 2  # a memory-mapped image never enters memory as a whole


def test_contexts_in_a_graph_are_those_of_the_mapper():
    images = [noise(20, 31), noise(32, 16), noise(5, 6)]
    batch = ImageList.from_tensors([torch.from_numpy(np.stack([image] * 3)) for image in images], 8, 99.0)
    found = context_of_images(batch.tensor, torch.tensor(batch.image_sizes), (8, 10))
    for i, image in enumerate(images):
        expected = context_image(image, (8, 10))
        rows, columns = expected.shape
        standard = (expected - expected.mean()) / expected.std(unbiased=False)
        torch.testing.assert_close(found.image[i, 0, :rows, :columns], standard, atol=1e-3, rtol=1e-3)
        assert found.valid[i].sum() == rows * columns
        assert found.image[i][~found.valid[i]].abs().sum() == 0
        height, width = batch.image_sizes[i]
        assert found.view[i].tolist() == pytest.approx([0, 0, columns / width, rows / height])


def test_unknown_sky_stays_unknown():
    mask = np.array([[1, 1, 0, 255], [1, 0, 255, 255]], np.uint8)
    assert context_mask(mask, (1, 2)).tolist() == [[0.75, -1]]
    assert context_mask(mask, (2, 4)).tolist() == [[1, 1, 0, -1], [1, 0, -1, -1]]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], (0, 0, 40, 30)),
        ([T.CropTransform(8, 5, 16, 10), T.ResizeTransform(10, 16, 20, 32)], (8, 5, 24, 15)),
        ([T.HFlipTransform(40)], (40, 0, 0, 30)),
        ([T.VFlipTransform(30), T.CropTransform(4, 0, 10, 10)], (4, 30, 14, 20)),
        ([T.PadTransform(10, 0, 0, 6)], (-10, 0, 40, 36)),
    ],
)
def test_windows_follow_the_augmentations(steps, expected):
    transforms = T.TransformList(steps)
    shown = transforms.apply_image(np.zeros((30, 40, 3), np.float32)).shape[:2]
    assert window_of(transforms, shown).tolist() == pytest.approx(expected)


def test_rotations_are_refused():
    with pytest.raises(ValueError, match="keep the axes"):
        window_of(T.TransformList([T.RotationTransform(30, 40, 20)]), (30, 40))


@pytest.mark.parametrize("window", [(0, 0, 64, 48), (16, 12, 48, 28), (-8, 30, 24, 60)])
def test_points_find_their_place_in_the_whole_image(window):
    """Maps of positions, sampled at a point, give its place in the image, clamped at the edge."""
    y, x = np.meshgrid(np.arange(48.0) + 0.5, np.arange(64.0) + 0.5, indexing="ij")
    size = (24, 32)
    maps = torch.stack([context_image(axis, (12, 16)) for axis in (x, y)])[None]  # half of the context
    x1, y1, x2, y2 = window
    scale, stride = 2, 4  # the network sees the window enlarged
    network = (scale * (y2 - y1), scale * (x2 - x1))
    view = torch.tensor([[x1 / 2, y1 / 2, 0.5 / scale, 0.5 / scale]])
    level = (network[0] // stride, network[1] // stride)
    found = sampling_of_level(view, level, stride, size)(maps)[0]
    points = [(np.arange(n // stride) + 0.5) * stride / scale for n in network]
    np.testing.assert_allclose(found[0, 0], (x1 + points[1]).clip(2, 62), atol=1e-3)  # centres of the outermost cells
    np.testing.assert_allclose(found[1, :, 0], (y1 + points[0]).clip(2, 46), atol=1e-3)


def test_sampling_is_that_of_torch():
    """Windows inside, over the edge and mirrored."""
    windows = torch.tensor([[3.0, 2, 9, 11], [-4, 5, 30, 40], [14, 20, 2, 3]])
    maps, level, stride = torch.randn(3, 5, 12, 16, dtype=torch.float64), (7, 9), 4
    view = torch.cat([windows[:, :2], (windows[:, 2:] - windows[:, :2]) / torch.tensor([36, 28])], dim=1)
    found = sampling_of_level(view, level, stride, (24, 32))(maps)
    x, y = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in level[::-1])
    x, y = (
        windows[:, i, None].double() + p * (windows[:, i + 2] - windows[:, i])[:, None] for i, p in enumerate((x, y))
    )
    grid = torch.stack([(x / 16 - 1)[:, None].expand(-1, 7, -1), (y / 12 - 1)[:, :, None].expand(-1, -1, 9)], -1)
    expected = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_every_image_weighs_the_same_in_the_loss():
    logits, sky = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    sky[0, 0, 0] = 0
    assert context_sky_loss(logits, sky).item() == pytest.approx(np.log(2))
    wrong = logits.clone()
    wrong[0, 0, 0] = 3.0  # a quarter of the first image
    first = (np.log1p(np.exp(3)) + 3 * np.log(2)) / 4
    assert context_sky_loss(wrong, sky).item() == pytest.approx((first + np.log(2)) / 2, rel=1e-5)
    sky[0, 0, 1:] = -1  # what is ignored does not count in the mean
    assert context_sky_loss(wrong, sky).item() == pytest.approx((np.log1p(np.exp(3)) + np.log(2)) / 2, rel=1e-5)
    sky[1] = -1  # nor does an image without a mask
    assert context_sky_loss(wrong, sky).item() == pytest.approx(np.log1p(np.exp(3)), rel=1e-5)
    assert context_sky_loss(logits, -torch.ones_like(sky)) == 0


def test_ignored_cells_have_no_gradient():
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    context_sky_loss(logits, torch.tensor([[[[1.0, -1], [-1, 0]]]])).backward()
    assert (logits.grad[0, 0] != 0).tolist() == [[True, False], [False, True]]


# --- the detector


def make_model(repo_root, *opts, config=FINE):
    torch.manual_seed(0)
    return build_model(get_config(repo_root / config, ["MODEL.DEVICE", "cpu", *opts]))


def crop(image, mask, x, y, edge=32, boxes=((5.0, 6, 9, 10),)):
    instances = Instances((edge, edge))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    part = slice(y, y + edge), slice(x, x + edge)
    return {
        "image": torch.from_numpy(image[part].transpose(2, 0, 1).copy()),
        "instances": instances,
        "context": context_image(image),
        "context_sem_seg": context_mask(mask),
        "context_window": torch.tensor([x, y, x + edge, y + edge]),
        "context_size": image.shape[:2],
    }


def scene():
    image, mask = noise(96, 128, 3), np.zeros((96, 128), np.uint8)
    mask[:48] = 1
    return image, mask


def test_all_parts_train(repo_root):
    model = make_model(
        repo_root, "MODEL.BAFE.EXCHANGE.SELECTION", "straight_through", "MODEL.BAFE.CONTEXT.LEARN_SKY_SCORE", True
    ).train()
    image, mask = scene()
    with EventStorage():
        losses = model([crop(image, mask, 20, 30), crop(image, mask, 90, 60, boxes=())])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_centerness", "loss_sky"}
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None and "fpn_output4" not in name] == []


def test_training_without_a_context_is_refused(repo_root):
    sample = {name: v for name, v in crop(*scene(), 0, 0).items() if not name.startswith("context")}
    with EventStorage(), pytest.raises(ConfigError, match=r"no `context`; set INPUT\.MAPPER to Backg"):
        make_model(repo_root).train()([sample])


def test_contexts_that_are_too_large_are_refused(repo_root):
    sample = crop(*scene(), 0, 0) | {"context": torch.zeros(200, 160)}
    with (
        EventStorage(),
        pytest.raises(ConfigError, match=r"200x160 cells and MODEL\.BAFE\.CONTEXT\.SIZE is \(128, 160"),
    ):
        make_model(repo_root).train()([sample])


def test_a_whole_image_is_its_own_context(repo_root):
    model = make_model(repo_root).eval()
    given = crop(*scene(), 0, 0, 96) | {"image": torch.from_numpy(scene()[0].transpose(2, 0, 1).copy())}
    given["context_window"] = torch.tensor([0, 0, 128, 96])
    plain = {"image": given["image"]}
    with torch.no_grad():
        (a,), (b,) = model([plain]), model([given])
        mixed = model([plain, given])
    for other in (b, *mixed):
        torch.testing.assert_close(a["sem_seg"], other["sem_seg"], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(a["instances"].scores, other["instances"].scores, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True)])
def test_a_mirrored_crop_sees_a_mirrored_context(repo_root, horizontal, vertical):
    """The crop of a mirrored image and the mirrored crop of an image are one."""
    model = make_model(repo_root).train()
    image, mask = scene()
    axes = [axis for axis, flip in ((0, vertical), (1, horizontal)) if flip]
    flipped = crop(np.flip(image, axes).copy(), np.flip(mask, axes).copy(), 20, 30)
    x1, x2 = (128 - 20, 128 - 52) if horizontal else (20, 52)
    y1, y2 = (96 - 30, 96 - 62) if vertical else (30, 62)
    window = torch.tensor([x1, y1, x2, y2])
    same = flipped | {"context": context_image(image), "context_sem_seg": context_mask(mask), "context_window": window}
    with EventStorage():
        expected, found = model([flipped]), model([same])
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss)


def test_views_of_a_crop_mirror_its_window(repo_root):
    model = make_model(repo_root).eval()
    sample = crop(*scene(), 20, 30)
    views = DetectorWithTTA(model, vertical_flip=True).views(sample)
    assert [view.sample["context_window"].tolist() for view in views] == [
        [20, 30, 52, 62], [52, 30, 20, 62], [20, 62, 52, 30], [52, 62, 20, 30]
    ]  # fmt: skip


def test_every_tile_sees_the_whole_image(repo_root):
    """Sky at a tile's points is the whole image's there."""
    model = make_model(repo_root).eval()
    image = scene()[0]
    seen = []

    def spy(samples):
        results = model(samples)
        seen.extend(zip(samples, results))
        return results

    whole = {"context": context_image(image), "context_size": image.shape[:2]}
    TiledPredictor(spy, tile=64, overlap=16, align=8, whole=whole)(image)
    with torch.no_grad():
        expected = model([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])[0]["sem_seg"]
    assert len(seen) > 3
    for sample, result in seen:
        x1, y1, x2, y2 = sample["context_window"].int().tolist()
        inner = slice(4, -4)  # at its edges a tile's map is enlarged without its neighbours
        found = result["sem_seg"][:, inner, inner]
        torch.testing.assert_close(found, expected[:, y1:y2, x1:x2][:, inner, inner], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("sizes", [[(96, 128)], [(64, 96), (96, 40)]])
def test_an_exported_form_makes_the_context_itself(repo_root, sizes):
    model = make_model(repo_root, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0).eval()
    images = [torch.from_numpy(noise(*size, 3).transpose(2, 0, 1).copy()) for size in sizes]
    batch = ImageList.from_tensors(images, 32, 7.0)
    graph = build_graph(model)
    with torch.no_grad():
        results = model([{"image": image} for image in images])
        outputs = graph(batch.tensor, torch.tensor(batch.image_sizes, dtype=torch.float32))
        traced = torch.jit.trace(graph, (torch.rand(1, 3, 64, 64), torch.tensor([[50.0, 64.0]])), check_trace=False)
        retraced = traced(batch.tensor, torch.tensor(batch.image_sizes, dtype=torch.float32))
    for i, result in enumerate(results):
        found = result["instances"]
        for _, scores, *_ in (outputs, retraced):
            count = int((scores[i] >= 0).sum())
            assert count == len(found)
            torch.testing.assert_close(scores[i, :count], found.scores, atol=1e-4, rtol=1e-3)


def test_background_beyond_the_crop_decides(repo_root):
    """Two equal crops of two scenes differ in sky."""
    model = make_model(repo_root).eval()
    image, mask = scene()
    other = image.copy()
    other[50:] = 0
    with torch.no_grad():
        a, b = (model([crop(pixels, mask, 8, 8)])[0]["sem_seg"] for pixels in (image, other))
    assert (a - b).abs().max() > 1e-4


def test_the_learned_score_scales_class_logits(repo_root):
    model = make_model(repo_root, "MODEL.BAFE.CONTEXT.LEARN_SKY_SCORE", True).eval()
    features = [torch.randn(1, 32, 8, 8), torch.randn(1, 32, 4, 4)]
    context = Context(torch.randn(1, 1, 128, 160), torch.ones(1, 1, 128, 160) > 0, torch.tensor([[9.0, 9, 1, 1]]))
    with torch.no_grad():
        before = model.predict_in_context(features, context)
        model.head.sky_gain.fill_(1.5)
        after = model.predict_in_context(features, context)
    for old, new, sky in zip(before["logits"], after["logits"], before["sky"]):
        torch.testing.assert_close(new, old + 1.5 * sky, atol=1e-4, rtol=1e-4)


def test_heads_of_regions_see_the_context(repo_root):
    """The background beyond a crop decides on sky and on detections; all of the context learns; given boxes work."""
    opts = ["MODEL.BAFE.CONTEXT.ENABLED", "True", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"]
    model = make_model(repo_root, *opts, config="configs/bafe/tiny/exchange_rcnn_tiny.yaml").train()
    image, mask = scene()
    with EventStorage():
        losses = model([crop(image, mask, 20, 20, edge=64)])
    losses["loss_sky"].backward(retain_graph=True)
    parts = model.roi_heads.context, model.roi_heads.seg_head
    assert all(p.grad.abs().sum() > 0 for p in parts[0].sky.parameters())
    assert parts[1].inject.weight.grad is None  # the sky is the context's alone
    sum(losses.values()).backward()
    assert parts[1].inject.weight.grad.abs().sum() > 0
    model.eval()
    other = image.copy()
    other[50:] = 0
    with torch.no_grad():
        a, b = (model([crop(pixels, mask, 8, 8, edge=64)])[0] for pixels in (image, other))
        assert (a["sem_seg"] - b["sem_seg"]).abs().max() > 1e-4
        given = model.inference(
            [crop(image, mask, 8, 8, edge=64)], detected_instances=[a["instances"]], do_postprocess=False
        )
    assert len(given[0]) == len(a["instances"])


def test_the_control_has_neither_exchange_nor_sky_loss(repo_root):
    model = make_model(repo_root, config="configs/bafe/tiny/fcos_context_fine.yaml").train()
    assert model.head.background.exchange is None
    with EventStorage():
        losses = model([crop(*scene(), 20, 30)])
    assert losses["loss_sky"] == 0
    losses["loss_cls"].backward()
    assert sum(p.grad.abs().sum() for p in model.context.down.parameters()) > 0  # detection alone trains its context


@pytest.mark.parametrize(
    "config", [FINE, "configs/bafe/tiny/fcos_fine.yaml", "configs/bafe/tiny/fcos_context_fine.yaml"]
)
def test_levels_that_a_pyramid_leaves_out_do_not_count_as_frozen(repo_root, config):
    cfg = get_config(repo_root / config, ["MODEL.DEVICE", "cpu"])
    refuse_frozen_random(build_model(cfg), cfg)
    cfg = get_config(repo_root / config, ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", 2])
    frozen = build_model(cfg)
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is empty"):
        refuse_frozen_random(frozen, cfg)


@pytest.mark.parametrize(
    ("config", "opts", "message"),
    [
        (FINE, ("MODEL.BAFE.EXCHANGE.MECHANISM", "spatial"), "MECHANISM is 'spatial'; .* use 'channel'"),
        (FINE, ("MODEL.BAFE.CONTEXT.ENABLED", "False"), "TEST.PRECISE_BN.ENABLED: .* set it to False"),
        ("configs/bafe/tiny/exchange_rcnn_tiny.yaml", ("TEST.PRECISE_BN.ENABLED", "True"), "TEST.PRECISE_BN.ENABLED"),
    ],
)
def test_what_an_exchange_cannot_do_is_named_before_the_training(repo_root, config, opts, message):
    with pytest.raises(ConfigError, match=message):
        make_model(repo_root, *opts, config=config)

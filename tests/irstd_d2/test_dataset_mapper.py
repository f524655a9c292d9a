"""The mapper: image, boxes and sky mask move together, metadata survives, nothing else is touched."""

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from fvcore.transforms.transform import NoOpTransform
from loops import for_every
from PIL import Image

from irstd_d2 import get_config
from irstd_d2.data import MAPPER_REGISTRY, IRSTDAugInput, IRSTDDatasetMapper, build_mapper, load_voc
from irstd_d2.data.statistics import local_contrast
from irstd_d2.data.transforms import Resize, ResizeShortestEdge, ResizeTransform
from irstd_d2.errors import ConfigError, DatasetError

BOXES = [[4, 6, 8, 12], [20, 2, 23, 5]]


def annotation(box, mode=BoxMode.XYXY_ABS, **extra):
    return {"bbox": box, "bbox_mode": mode, "category_id": 0, "iscrowd": 0, **extra}


@pytest.fixture
def sample(tmp_path):
    """A 32x24 image, black but for its two boxes; the sky is its upper half."""
    pixels = np.zeros((24, 32), np.uint8)
    for x1, y1, x2, y2 in BOXES:
        pixels[y1:y2, x1:x2] = 200
    sky = np.zeros((24, 32), np.uint8)
    sky[:12] = 255
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    cv2.imwrite(str(tmp_path / "sky.png"), sky)
    return {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "sky.png"),
        "image_id": "a",
        "height": 24,
        "width": 32,
        "metadata": {"platform": "Air", "band": None, "width": 32, "height": 24},
        "annotations": [annotation(box) for box in BOXES],
    }


def mapper(*augmentations, is_train=True, **options):
    return IRSTDDatasetMapper(is_train, augmentations=list(augmentations), **options)


def test_plain_sample(sample):
    before = copy.deepcopy(sample)
    mapped = mapper()(sample)
    assert sample == before
    assert set(mapped) == {"file_name", "image_id", "height", "width", "metadata", "image", "sem_seg", "instances"}
    assert mapped["image"].shape == (3, 24, 32)
    assert mapped["image"].dtype == torch.float32
    assert mapped["image"].is_contiguous()
    assert mapped["image"].sum() == 3 * 200 * (24 + 9)
    assert mapped["instances"].gt_boxes.tensor.tolist() == BOXES
    assert mapped["instances"].gt_boxes.tensor.dtype == torch.float32
    assert mapped["instances"].gt_classes.tolist() == [0, 0]
    assert mapped["instances"].gt_classes.dtype == torch.int64
    assert mapped["instances"].image_size == (24, 32)
    assert mapped["sem_seg"].dtype == torch.int64
    assert mapped["sem_seg"].sum(dim=1).tolist() == [32] * 12 + [0] * 12
    assert mapped["metadata"] == before["metadata"]


def test_inference_keeps_size_and_metadata_and_drops_labels(sample):
    mapped = mapper(Resize((48, 64)), is_train=False)(sample)
    assert set(mapped) == {"file_name", "image_id", "height", "width", "metadata", "image"}
    assert mapped["image"].shape == (3, 48, 64)
    assert (mapped["height"], mapped["width"]) == (24, 32)
    assert mapped["metadata"] == sample["metadata"]


def brightest(mapped):
    """Boxes of the bright parts of an image, by their left edges."""
    _, _, rows, _ = cv2.connectedComponentsWithStats((mapped["image"][0].numpy() > 100).astype(np.uint8))
    boxes = rows[1:, :4].copy()
    boxes[:, 2:] += boxes[:, :2]
    return boxes[boxes[:, 0].argsort()].tolist()


def test_flip_moves_all_together(sample):
    mapped = mapper(T.HFlipTransform(32))(sample)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[24, 6, 28, 12], [9, 2, 12, 5]]
    assert brightest(mapped) == [[9, 2, 12, 5], [24, 6, 28, 12]]
    mapped = mapper(T.VFlipTransform(24))(sample)
    assert brightest(mapped) == mapped["instances"].gt_boxes.tensor.tolist() == [[4, 12, 8, 18], [20, 19, 23, 22]]
    assert mapped["sem_seg"].sum(dim=1).tolist() == [0] * 12 + [32] * 12
    assert mapped["image"].is_contiguous()


@for_every(("height", "width"), [(48, 64), (72, 32), (12, 16)])
def test_fixed_resize_scales_all_together(sample, height, width):
    mapped = mapper(Resize((height, width)))(sample)
    assert mapped["image"].shape == (3, height, width)
    scale = np.array([width / 32, height / 24] * 2)
    np.testing.assert_allclose(mapped["instances"].gt_boxes.tensor, np.array(BOXES) * scale, rtol=1e-6)
    np.testing.assert_allclose(brightest(mapped), np.array(BOXES) * scale, atol=1)
    assert mapped["sem_seg"].shape == (height, width)
    assert set(mapped["sem_seg"].unique().tolist()) == {0, 1}  # nearest: no label in between
    assert mapped["sem_seg"].sum() == height * width / 2


def test_shortest_edge(sample):
    mapped = mapper(ResizeShortestEdge(48, 60))(sample)
    assert mapped["image"].shape == (3, 45, 60)
    assert mapped["instances"].image_size == (45, 60)


@for_every("shape", [(24, 32, 3), (24, 32), (24, 32, 1), (24, 32, 5)])
@for_every("dtype", [np.float32, np.float64])
@for_every("target", [(48, 64), (12, 16), (37, 11), (24, 32)])
def test_resize_equals_detectron2(shape, dtype, target):
    image = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    ours = ResizeTransform(24, 32, *target, Image.BILINEAR).apply_image(image)
    theirs = T.ResizeTransform(24, 32, *target, Image.BILINEAR).apply_image(image)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_resize_of_a_flipped_view():
    image = np.ascontiguousarray(np.random.default_rng(0).random((24, 32, 3)), dtype=np.float32)
    resize = ResizeTransform(24, 32, 48, 50, Image.BILINEAR)
    np.testing.assert_allclose(resize.apply_image(image[:, ::-1]), resize.apply_image(image[:, ::-1].copy()))


def test_shortest_edge_zero_means_no_resize():
    assert isinstance(ResizeShortestEdge(0).get_transform(np.zeros((4, 4, 3), np.float32)), NoOpTransform)


def test_crop_clips_boxes_and_drops_those_outside(sample):
    mapped = mapper(T.CropTransform(6, 0, 14, 10))(sample)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[0, 6, 2, 10]]
    assert mapped["instances"].image_size == (10, 14)
    assert mapped["sem_seg"].shape == (10, 14)


class AddTarget(T.Augmentation):
    """Writes a target and adds its box, as copy-paste augmentations do."""

    def __call__(self, aug_input):
        aug_input.image[1:3, 10:13] = 255
        aug_input.boxes = np.concatenate([aug_input.boxes, np.float32([[10, 1, 13, 3]])])
        aug_input.classes = np.append(aug_input.classes, 2)
        return NoOpTransform()


def test_augmentation_may_add_targets(sample):
    mapped = mapper(AddTarget(), T.HFlipTransform(32))(sample)
    assert mapped["instances"].gt_boxes.tensor[2].tolist() == [19, 1, 22, 3]
    assert mapped["instances"].gt_classes.tolist() == [0, 0, 2]
    assert mapped["image"][:, 1, 19:22].eq(255).all()


def test_difficult_objects_and_other_box_modes(sample):
    sample["annotations"] = [annotation([4, 6, 4, 6], BoxMode.XYWH_ABS), annotation([1, 1, 2, 2], iscrowd=1)]
    assert mapper()(sample)["instances"].gt_boxes.tensor.tolist() == [[4, 6, 8, 12]]


def test_image_without_targets(sample):
    sample["annotations"] = []
    instances = mapper(Resize((12, 16)), T.HFlipTransform(16))(sample)["instances"]
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_classes.shape == (0,)
    assert instances.gt_classes.dtype == torch.int64


def test_without_annotations_masks_or_sizes(sample):
    for key in ("annotations", "sem_seg_file_name", "height", "width", "metadata"):
        del sample[key]
    mapped = mapper()(sample)
    assert set(mapped) == {"file_name", "image_id", "height", "width", "metadata", "image"}
    assert mapped["metadata"] == {"width": 32, "height": 24}
    assert (mapped["height"], mapped["width"]) == (24, 32)


def test_metadata_of_a_tile_keeps_the_original_size(sample):
    sample["metadata"] = {"band": "NIR", "width": 6000, "height": 6000}
    assert mapper(Resize((9, 9)))(sample)["metadata"] == {"band": "NIR", "width": 6000, "height": 6000}
    sample["metadata"] = {"platform": "Land", "width": None}
    assert mapper()(sample)["metadata"] == {"platform": "Land", "width": None, "height": 24}


def test_masks_can_be_left_out(sample):
    assert "sem_seg" not in mapper(load_sem_seg=False)(sample)


def test_ignored_sky_pixels_survive(sample, tmp_path):
    labels = np.ones((24, 32), np.uint8)
    labels[:, 5:9] = 255
    Image.fromarray(labels).save(tmp_path / "sky.png")
    assert mapper()(sample)["sem_seg"].unique().tolist() == [1, 255]


def test_sixteen_bits(sample, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((24, 32), 257 * 100, np.uint16))
    assert mapper(high_bit_depth="full_range")(sample)["image"].unique().tolist() == [100]
    stretched = mapper(high_bit_depth="minmax")(sample)["image"]
    assert stretched.unique().tolist() == [0]


def test_channel_order(sample, tmp_path):
    Image.fromarray(np.tile(np.uint8([10, 20, 30]), (24, 32, 1))).save(tmp_path / "a.png")
    assert mapper()(sample)["image"][:, 0, 0].tolist() == [10, 20, 30]
    assert mapper(image_format="BGR")(sample)["image"][:, 0, 0].tolist() == [30, 20, 10]


class TestFaults:
    def test_size_differs_from_annotation(self, sample):
        sample["width"] = 33
        with pytest.raises(DatasetError, match=r"a\.png: size: 32x24 pixels, but annotated as 33x24"):
            mapper()(sample)

    def test_mask_of_another_size(self, sample, tmp_path):
        cv2.imwrite(str(tmp_path / "sky.png"), np.zeros((24, 31), np.uint8))
        with pytest.raises(DatasetError, match=r"sky\.png: size: 31x24"):
            mapper()(sample)

    def test_truncated_image_is_skipped_in_training_only(self, sample, tmp_path, caplog):
        path = tmp_path / "a.png"
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(DatasetError, match="truncated"):
            mapper()(sample)
        assert mapper(skip_bad=True)(sample) is None
        assert "Skipped" in caplog.text
        assert "a.png" in caplog.text
        with pytest.raises(DatasetError):
            mapper(is_train=False, skip_bad=True)(sample)

    def test_error_survives_the_way_out_of_a_worker(self, sample):
        sample["width"] = 33
        with pytest.raises(DatasetError) as caught:
            mapper()(sample)
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
        assert (str(again), again.field) == (str(caught.value), "size")


class TestConfig:
    def test_fixed_size_with_flip(self, sample):
        cfg = get_config(None, ["INPUT.RESIZE_MODE", "fixed", "INPUT.FIXED_SIZE", (48, 40), "INPUT.FORMAT", "BGR"])
        train = build_mapper(cfg, True)
        assert type(train) is IRSTDDatasetMapper
        assert [type(aug).__name__ for aug in train.augmentations.augs] == ["Resize", "RandomFlip"]
        assert train.image_format == "BGR"
        assert train(sample)["image"].shape == (3, 48, 40)
        test = build_mapper(cfg, False)
        assert [type(aug).__name__ for aug in test.augmentations.augs] == ["Resize"]

    def test_shortest_edge_uses_detectron2s_keys(self, sample):
        opts = ["INPUT.MIN_SIZE_TRAIN", (48,), "INPUT.MIN_SIZE_TEST", 36, "INPUT.RANDOM_FLIP", "vertical"]
        cfg = get_config(None, opts)
        train = build_mapper(cfg, True)
        assert train(sample)["image"].shape == (3, 48, 64)
        assert (train.augmentations.augs[1].horizontal, train.augmentations.augs[1].vertical) == (False, True)
        assert build_mapper(cfg, False)(sample)["image"].shape == (3, 36, 48)

    def test_crop_and_no_flip(self, sample):
        opts = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", (12, 12)]
        opts += ["INPUT.RANDOM_FLIP", "none", "INPUT.RESIZE_MODE", "fixed", "INPUT.FIXED_SIZE", (24, 24)]
        cfg = get_config(None, opts)
        names = [type(aug).__name__ for aug in build_mapper(cfg, True).augmentations.augs]
        assert names == ["TargetCrop", "Resize"]
        assert build_mapper(cfg, True)(sample)["image"].shape == (3, 24, 24)
        assert len(build_mapper(cfg, False).augmentations.augs) == 1

    def test_scale(self, sample):
        opts = ["INPUT.RESIZE_MODE", "scale", "INPUT.SCALE", 1.5, "INPUT.RANDOM_FLIP", "none"]
        plain = build_mapper(get_config(None, ["INPUT.RESIZE_MODE", "scale", *opts[4:]]), True)(sample)
        scaled = build_mapper(get_config(None, opts), True)(sample)
        assert scaled["image"].shape == (3, *(round(1.5 * n) for n in plain["image"].shape[1:]))
        boxes = plain["instances"].gt_boxes.tensor
        torch.testing.assert_close(scaled["instances"].gt_boxes.tensor, 1.5 * boxes)
        with pytest.raises(ConfigError, match=r"INPUT\.SCALE is 0"):
            build_mapper(get_config(None, [*opts, "INPUT.SCALE", 0.0]), True)

    def test_other_options_reach_the_mapper(self):
        opts = ["INPUT.HIGH_BIT_DEPTH", "percentile", "INPUT.LOAD_SEM_SEG", False, "DATASETS.SKIP_BAD", True]
        built = build_mapper(get_config(None, opts), True)
        assert (built.high_bit_depth, built.load_sem_seg, built.skip_bad) == ("percentile", False, True)

    def test_unknown_resize_mode(self):
        with pytest.raises(ConfigError, match=r"INPUT\.RESIZE_MODE is 'crop'; use 'shortest_edge', 'fixed' or 'scale'"):
            build_mapper(get_config(None, ["INPUT.RESIZE_MODE", "crop"]), True)

    def test_registered_subclass_with_hooks(self, sample):
        class WithoutBand(IRSTDDatasetMapper):
            @classmethod
            def build_augmentation(cls, cfg, is_train):
                return [T.HFlipTransform(32), *super().build_augmentation(cfg, is_train)]

            def load(self, dataset_dict):
                loaded = super().load(dataset_dict)
                assert isinstance(loaded, IRSTDAugInput)
                return loaded

            def process_metadata(self, metadata):
                return {**metadata, "band": None}

        MAPPER_REGISTRY._do_register("MapperOfTheTest", WithoutBand)
        try:
            built = build_mapper(get_config(None, ["INPUT.MAPPER", "MapperOfTheTest"]), True)
            sample["metadata"]["band"] = "LWIR"
            assert built(sample)["metadata"] == {"platform": "Air", "band": None, "width": 32, "height": 24}
            assert len(built.augmentations.augs) == 3
        finally:
            MAPPER_REGISTRY._obj_map.pop("MapperOfTheTest")


def test_real_targets_stay_under_their_boxes(real_densesirst):
    dicts = load_voc(real_densesirst / "SIRSTdevkit", "val_v1")[:12]
    build = mapper(Resize((512, 512)), T.HFlipTransform(512))
    contrasts = []
    for sample in dicts:
        mapped = build(sample)
        boxes = mapped["instances"].gt_boxes.tensor
        assert len(boxes) == len(sample["annotations"])
        expected = torch.tensor([obj["bbox"] for obj in sample["annotations"]])
        expected = expected * 512 / torch.tensor([sample["width"], sample["height"]] * 2)
        flipped = torch.stack([512 - expected[:, 2], expected[:, 1], 512 - expected[:, 0], expected[:, 3]], dim=1)
        torch.testing.assert_close(boxes, flipped, atol=1e-3, rtol=0)
        assert mapped["image"].shape == (3, 512, 512)
        assert mapped["sem_seg"].shape == (512, 512)
        contrasts.append(local_contrast(mapped["image"][0].numpy(), boxes.numpy()))
    assert (np.concatenate(contrasts) > 1).mean() > 0.95


class SeesThreeChannels(T.Augmentation):
    def get_transform(self, image):
        assert image.ndim == 3
        return NoOpTransform()


class SeesOneChannel(T.Augmentation):
    channelwise = True

    def get_transform(self, image):
        assert image.ndim == 2
        return NoOpTransform()


@for_every("bits", [np.uint8, np.uint16])
@for_every("is_train", [True, False])
def test_a_gray_image_gets_its_channels_last_and_nothing_else_changes(sample, bits, is_train):
    rng = np.random.default_rng(0)
    cv2.imwrite(sample["file_name"], rng.integers(0, np.iinfo(bits).max, (24, 32), dtype=bits, endpoint=True))
    common = [T.RandomFlip(prob=1.0), Resize((37, 51)), T.RandomCrop("absolute", (20, 30))]
    np.random.seed(0)
    late = mapper(*common, SeesOneChannel(), is_train=is_train)(sample)
    np.random.seed(0)
    early = mapper(*common, SeesThreeChannels(), is_train=is_train)(sample)
    assert late["image"].is_contiguous()
    assert late["image"].shape == (3, 20, 30)
    assert torch.equal(late["image"], early["image"])
    late["image"][0] = -1  # the channels are no views of one another
    assert torch.equal(late["image"][1:], early["image"][1:])


def test_a_colour_image_keeps_its_channels(sample):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    cv2.imwrite(sample["file_name"], pixels)
    mapped = mapper(T.RandomFlip(prob=1.0), image_format="BGR")(sample)
    assert torch.equal(mapped["image"], torch.from_numpy(pixels[:, ::-1].transpose(2, 0, 1).astype(np.float32)))


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("metadata", [None, {}])
def test_metadata_and_masks_that_are_none(sample, is_train, metadata):
    mapper = IRSTDDatasetMapper(is_train, augmentations=[])
    found = mapper({**sample, "metadata": metadata, "sem_seg_file_name": None})
    assert found["metadata"] == {"width": sample["width"], "height": sample["height"]}
    assert "sem_seg" not in found


@pytest.mark.parametrize("mode", [BoxMode.XYXY_ABS, BoxMode.XYWH_ABS])
def test_boxes_may_be_arrays(sample, mode):
    box = BoxMode.convert([10.0, 12.0, 14.0, 15.0], BoxMode.XYXY_ABS, mode)
    annotation = {"bbox": np.array(box), "bbox_mode": mode, "category_id": 0}
    found = IRSTDDatasetMapper(True, augmentations=[])({**sample, "annotations": [annotation]})
    assert found["instances"].gt_boxes.tensor.tolist() == [[10, 12, 14, 15]]


@pytest.mark.parametrize("flip", ["both", "horizntal", ""])
def test_an_unknown_flip_is_refused(flip):
    with pytest.raises(ConfigError, match=f"INPUT.RANDOM_FLIP is '{flip}'; known are 'none', 'horizontal', 'vertical'"):
        IRSTDDatasetMapper.build_augmentation(get_config(None, ["INPUT.RANDOM_FLIP", flip]), True)


@for_every("options", [
    {"INPUT.GAIN_RANGE": (0.7, 1.4)},
    {"INPUT.OFFSET_RANGE": 30.0},
    {"INPUT.INVERT_PROB": 1.0, "INPUT.RESIZE_MODE": "scale", "INPUT.SCALE": 2.0},
    {"INPUT.GAIN_RANGE": (1.5, 1.5), "INPUT.RANDOM_FLIP": "horizontal", "INPUT.RESIZE_MODE": "scale"},
])  # fmt: skip
def test_gain_and_offset_are_of_the_image_alone(sample, options):
    """The mask became numbers that are no labels, of which the sky loss makes what it likes."""
    scale = int(options.get("INPUT.SCALE", 1))
    defaults = {"INPUT.RANDOM_FLIP": "none", "INPUT.MIN_SIZE_TRAIN": (24,)}
    cfg = get_config(None, [item for pair in (defaults | options).items() for item in pair])
    plain = mapper()(sample)
    for seed in range(3):
        np.random.seed(seed)
        mapped = build_mapper(cfg, True)(sample)
        expected = plain["sem_seg"].repeat_interleave(scale, 0).repeat_interleave(scale, 1)  # the same mirrored
        assert torch.equal(mapped["sem_seg"], expected)
        assert len(mapped["instances"]) == len(BOXES)
        assert not torch.equal(mapped["image"].unique(), plain["image"].unique())

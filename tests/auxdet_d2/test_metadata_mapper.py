import cv2
import numpy as np
import pytest

from auxdet_d2.data import MetadataDatasetMapper
from irstd_d2 import get_config
from irstd_d2.data import build_mapper
from irstd_d2.errors import ConfigError

KNOWN = {"platform": "Air", "band": "LWIR", "width": 40, "height": 30}


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.full((30, 40), 9, np.uint8))
    return {
        "file_name": str(path),
        "image_id": "image",
        "annotations": [],
        "metadata": {"platform": "Air", "band": "LWIR"},
    }


def mapper(is_train, dropout, **kwargs):
    return MetadataDatasetMapper(is_train, augmentations=[], metadata_dropout=dropout, **kwargs)


def test_the_config_names_it_and_the_original_size_survives_resizing(sample):
    cfg = get_config(None, ["INPUT.MAPPER", "MetadataDatasetMapper", "INPUT.METADATA_DROPOUT", 0.25])
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.ENABLED = (96,), True
    built = build_mapper(cfg, is_train=True)
    assert isinstance(built, MetadataDatasetMapper)
    assert built.metadata_dropout == 0.25
    built.metadata_dropout = 0.0
    mapped = built(sample)
    assert min(mapped["image"].shape[1:]) == 96
    assert mapped["metadata"] == KNOWN


def test_dropout_takes_whole_fields_at_its_rate(sample):
    np.random.seed(0)
    drop = mapper(True, 0.3)
    seen = [drop.process_metadata(KNOWN) for _ in range(2000)]
    for field in KNOWN:
        assert np.mean([m[field] is None for m in seen]) == pytest.approx(0.3, abs=0.04)
    assert all((m["width"] is None) == (m["height"] is None) for m in seen)
    # Each field for itself: all eight combinations occur.
    assert len({(m["platform"], m["band"], m["width"]) for m in seen}) == 8
    assert KNOWN["platform"] == "Air"
    assert mapper(True, 1.0)(sample)["metadata"] == dict.fromkeys(KNOWN)


def test_images_without_any_metadata():
    np.random.seed(0)
    drop = mapper(True, 0.1, metadata_dropout_all=0.4)
    seen = [drop.process_metadata(KNOWN) for _ in range(2000)]
    nothing = np.mean([all(value is None for value in m.values()) for m in seen])
    assert nothing == pytest.approx(0.4 + 0.6 * 0.1**3, abs=0.04)
    assert np.mean([m["band"] is None for m in seen]) == pytest.approx(0.46, abs=0.04)
    with pytest.raises(ConfigError, match="METADATA_DROPOUT_ALL"):
        mapper(True, 0.0, metadata_dropout_all=2.0)


def test_nothing_is_dropped_without_training_or_without_dropout(sample):
    assert mapper(False, 1.0)(sample)["metadata"] == KNOWN
    assert mapper(True, 0.0)(sample)["metadata"] == KNOWN


@pytest.mark.parametrize("dropout", [-0.1, 1.5])
def test_a_probability_is_needed(dropout):
    with pytest.raises(ConfigError, match="METADATA_DROPOUT"):
        mapper(True, dropout)


def test_further_fields_are_dropped_each_for_itself():
    cfg = get_config(None, ["INPUT.METADATA_DROPOUT", 0.5, "MODEL.METADATA.EXTRA_NUMERIC", ("view_angle=0:90",)])
    built = MetadataDatasetMapper(cfg, is_train=True)
    np.random.seed(0)
    seen = [built.process_metadata({**KNOWN, "view_angle": 30}) for _ in range(400)]
    assert np.mean([m["view_angle"] is None for m in seen]) == pytest.approx(0.5, abs=0.1)
    assert len({(m["platform"], m["view_angle"]) for m in seen}) == 4

import logging
import math
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every

from auxdet_d2.metadata import ImagingMetadata, MetadataBatch, MetadataVocabulary, Vocabulary, collate_metadata
from irstd_d2 import get_config
from irstd_d2.errors import ConfigError

PLATFORMS, BANDS = ("Air", "Space", "Land"), ("LWIR", "NIR", "SWIR")
ALIASES = {"airborne": "Air", "Near Infrared": "NIR"}
VOCABULARY = MetadataVocabulary(Vocabulary("platform", PLATFORMS, ALIASES), Vocabulary("band", BANDS, ALIASES))
names = st.one_of(st.none(), st.text(string.printable + "é空", max_size=12))
lengths = st.one_of(st.none(), st.integers(1, 10_000), st.floats(0.5, 1e4))


def test_collates_known_and_unknown_fields():
    batch = collate_metadata(
        [
            {"platform": "Air", "band": "LWIR", "width": 256, "height": 128},
            {"platform": " space-based ", "band": "near_infrared", "width": 1024, "height": "740"},
            {"platform": "LAND", "band": "Unknown", "width": None, "height": 512},
            None,
            ImagingMetadata(platform="airborne", band="swir", width=8, height=9),
        ],
        MetadataVocabulary.from_config(get_config()),
    )
    assert batch.platform.tolist() == [0, 1, 2, -1, 0]
    assert batch.band.tolist() == [0, 1, -1, -1, 2]
    assert batch.size.tolist() == [[256, 128], [1024, 740], [0, 0], [0, 0], [8, 9]]
    assert batch.platform.dtype == batch.band.dtype == torch.int64
    assert batch.size.dtype == torch.float32


def test_empty_batch_and_unknown():
    batch = collate_metadata([], VOCABULARY, device="cpu")
    assert batch.num_images == 0
    assert batch.size.shape == (0, 2)
    unknown = MetadataBatch.unknown(2)
    for ours, expected in zip(unknown, collate_metadata([{}, None], VOCABULARY)):
        assert torch.equal(ours, expected)
        assert ours.dtype == expected.dtype


@settings(deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional={"platform": names, "band": names, "width": lengths}), max_size=4))
def test_any_text_becomes_a_known_position_or_unknown(entries):
    batch = collate_metadata(entries, VOCABULARY)
    assert batch.num_images == len(entries)
    assert all(-1 <= i < 3 for i in batch.platform.tolist() + batch.band.tolist())
    assert not batch.size.any()  # the height is missing


@settings(deadline=None)
@given(st.sampled_from((*PLATFORMS, "airborne")), st.data())
def test_case_spaces_and_punctuation_do_not_matter(name, data):
    noise = st.text(alphabet=" -_.", max_size=2)
    spelled = "".join(
        data.draw(noise) + (c.upper() if data.draw(st.booleans()) else c.lower()) for c in name
    ) + data.draw(noise)
    assert VOCABULARY.platforms.index(spelled) == VOCABULARY.platforms.index(name) >= 0


@settings(deadline=None)
@given(lengths, lengths)
def test_sizes_survive(width, height):
    size = collate_metadata([{"width": width, "height": height}], VOCABULARY).size
    expected = [width, height] if width is not None and height is not None else [0, 0]
    torch.testing.assert_close(size, torch.tensor([expected], dtype=torch.float32))


@for_every(
    ("entry", "field"),
    [
        ({"platform": 3}, "platform"),
        ({"band": b"LWIR"}, "band"),
        ({"width": 0, "height": 5}, "width"),
        ({"width": 5, "height": -1}, "height"),
        ({"width": "wide"}, "width"),
        ({"height": float("nan")}, "height"),
        ({"height": [5]}, "height"),
    ],
)
def test_nonsense_is_refused_by_name(entry, field):
    with pytest.raises(ValueError, match=f"metadata {field} is"):
        collate_metadata([entry], VOCABULARY)


def test_a_foreign_name_is_unknown_and_reported_once(caplog):
    with caplog.at_level(logging.WARNING, logger="auxdet_d2.metadata"):
        for _ in range(3):
            assert collate_metadata([{"platform": "Submarine-7"}], VOCABULARY).platform.tolist() == [-1]
        assert collate_metadata([{"platform": "unknown"}], VOCABULARY).platform.tolist() == [-1]
    assert [r.getMessage() for r in caplog.records] == [
        "platform 'Submarine-7' is not among ('Air', 'Space', 'Land') and is treated as unknown; a model that is "
        'trained with MODEL.METADATA.PLATFORMS \'("Air", "Space", "Land", "Submarine-7")\' tells it apart'
    ]


@for_every("spelling", ["MWIR", "mid-wave", "Midwave Infrared"])
def test_spellings_of_a_band_beyond_the_published_ones(spelling):
    cfg = get_config()
    published = MetadataVocabulary.from_config(cfg)
    assert [published.bands.index(name) for name in (*BANDS, spelling)] == [0, 1, 2, -1]
    assert """BANDS '("LWIR", "NIR", "SWIR", "MWIR")' tells it apart""" in published.bands.remark(spelling)
    cfg.MODEL.METADATA.BANDS = ("LWIR", "NIR", "SWIR", "MWIR")
    wider = MetadataVocabulary.from_config(cfg)
    assert [wider.bands.index(name) for name in (*BANDS, spelling)] == [0, 1, 2, 3]
    assert wider.bands.remark(spelling) is None


def test_the_default_vocabulary_is_that_of_the_config():
    default, configured = MetadataVocabulary(), MetadataVocabulary.from_config(get_config())
    assert default.platforms.names == configured.platforms.names == PLATFORMS
    assert default.bands.names == configured.bands.names == BANDS


def test_larger_vocabularies_from_the_config():
    cfg = get_config()
    cfg.MODEL.METADATA.PLATFORMS = ("Air", "Sea", "Drone")
    cfg.MODEL.METADATA.BANDS = ("MWIR", "LWIR")
    vocabulary = MetadataVocabulary.from_config(cfg)
    # "drone=Air" is among the default aliases; a name of its own wins.
    assert [vocabulary.platforms.index(n) for n in ("sea", "drone", "uav", "Land")] == [1, 2, 0, -1]
    assert vocabulary.bands.index("mwir") == 0
    assert len(vocabulary.platforms) == 3


@for_every("names", [(), ("Air", "AIR"), ("Air", "-")])
def test_vocabularies_that_cannot_work(names):
    with pytest.raises(ConfigError, match="platform vocabulary"):
        Vocabulary("platform", names)


@for_every("alias", ["airborne", "=Air", "airborne="])
def test_a_malformed_alias_is_refused(alias):
    cfg = get_config()
    cfg.MODEL.METADATA.ALIASES = (alias,)
    with pytest.raises(ConfigError, match="alias=name"):
        MetadataVocabulary.from_config(cfg)


def further_fields(numeric=(), categorical=()):
    cfg = get_config()
    cfg.MODEL.METADATA.EXTRA_NUMERIC, cfg.MODEL.METADATA.EXTRA_CATEGORICAL = numeric, categorical
    return MetadataVocabulary.from_config(cfg)


MORE = further_fields(("view_angle=0:90", "gsd=0.1:10:log"), ("season=summer,winter",))


def test_further_fields_become_places_in_their_range_or_vocabulary():
    assert MORE.extra_sizes == {"view_angle": 0, "gsd": 0, "season": 2}
    batch = collate_metadata(
        [
            {"platform": "Air", "view_angle": 45, "gsd": "1.0", "season": "Winter"},
            {"view_angle": "n/a", "gsd": None, "season": "unknown"},
            {"view_angle": 0, "gsd": 10, "season": "summer", "ignored": [1]},
            None,
        ],
        MORE,
    )
    nan = float("nan")
    expected = torch.tensor([[0.5, 0.5, 1], [nan] * 3, [0, 1, 0], [nan] * 3])
    torch.testing.assert_close(batch.extra, expected, equal_nan=True)
    assert collate_metadata([{"view_angle": 45}], VOCABULARY).extra.shape == (1, 0)
    assert collate_metadata([], MORE).extra.shape == (0, 3)


@settings(deadline=None)
@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_place_in_a_range_keeps_the_order(first, second):
    for extra in MORE.numeric:
        places = [extra.position(value) for value in (first, second)]
        assert all(0 <= place <= 1 for place in places)
        assert (first <= second) == (places[0] <= places[1]) or math.isclose(*places)


def test_numbers_outside_count_as_the_nearer_end_and_are_reported_once(caplog):
    with caplog.at_level(logging.WARNING, logger="auxdet_d2.metadata"):
        for _ in range(2):
            assert collate_metadata([{"view_angle": -1234.5, "gsd": 99}], MORE).extra[0, :2].tolist() == [0, 1]
    assert [r.getMessage() for r in caplog.records] == [
        "view_angle -1234.5 is outside 0..90 and counts as 0",
        "gsd 99 is outside 0.1..10 and counts as 10",
    ]


@for_every(("name", "value"), [("view_angle", "steep"), ("gsd", float("inf")), ("season", 3)])
def test_a_further_value_of_the_wrong_kind_names_file_and_field(name, value):
    with pytest.raises(ValueError, match=rf"^b\.png: metadata {name} is .*give a"):
        collate_metadata([None, {name: value}], MORE, files=["a.png", "b.png"])


@for_every(
    ("numeric", "categorical", "message"),
    [
        (["view_angle"], [], "EXTRA_NUMERIC has 'view_angle'"),
        (["view_angle=0:steep"], [], "EXTRA_NUMERIC has"),
        (["view_angle=0:90:lin"], [], "EXTRA_NUMERIC has"),
        (["view_angle=90:0"], [], "range of view_angle is 90.0..0.0"),
        (["gsd=0:10:log"], [], "starts at 0.0"),
        (["view angle=0:90"], [], "cannot name a metadata field"),
        (["width=0:90"], [], "two metadata fields 'width'"),
        (["a=0:1"], ["a=x,y"], "two metadata fields 'a'"),
        ([], ["season"], "EXTRA_CATEGORICAL has 'season'"),
        ([], ["season=summer,Summer"], "season vocabulary"),
    ],
)
def test_declarations_that_cannot_work(numeric, categorical, message):
    with pytest.raises(ConfigError, match=message):
        further_fields(numeric, categorical)

"""Sets of one image file, for tests of conversions.

The fixture ``pixels`` gives the folder of that image and its sky mask.
"""

from irstd_d2.data.convert import (
    DetectionSet,
    ImageRecord,
    TargetObject,
)

WIDTH, HEIGHT = 60, 40


def make_record(pixels, name="a", boxes=((3, 4, 6, 8),), **values):
    objects = tuple(TargetObject("Target", box) for box in boxes)
    return ImageRecord(name, pixels / "image.png", (WIDTH, HEIGHT), **{"objects": objects, **values})


def as_set(*records, **values):
    return DetectionSet(tuple(records), **{"class_names": ("Target",), **values})


def facts(detection_set):
    """What must survive a round trip: everything but the places of files."""
    return {
        record.name: (
            record.size,
            sorted(record.objects),
            record.platform,
            record.band,
            record.original_size,
            None if record.sky_mask is None else record.sky_mask.read_bytes(),
            record.image.read_bytes(),
        )
        for record in detection_set.records
    }, {split: sorted(names) for split, names in detection_set.splits.items()}

"""What other tools call the images and the classes of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.image_io import strip_image_suffix
from .ground_truth import GroundTruth


class ImageNames:
    """The images of a data set by everything they may be called: id, path, file name, with and without suffix.

    With ``ids_first`` a name is an id before it is a file's name.

    Attributes:
        by_number: names that were found only as the number that a file's name stands for, as 7 for ``00007``.
    """

    def __init__(self, truth: GroundTruth, *, ids_first: bool):
        self.by_number: list[Any] = []
        self._ids = set(truth.image_ids)
        tables: list[dict[str, list[Any]]] = [{} for _ in range(5)]
        by_id, by_path, by_name, by_stem, by_number = tables
        for image_id, files in zip(truth.image_ids, truth.files):
            path = Path(files.image) if files.image else Path(str(image_id))
            stem = strip_image_suffix(path.name)
            for table, key in (
                (by_id, str(image_id)),
                (by_path, path.as_posix()),
                (by_name, path.name),
                (by_stem, stem),
                (by_number, str(int(stem)) if stem.isdecimal() else ""),
            ):
                table.setdefault(key, []).append(image_id)
        by_number.pop("", None)
        files_first = [by_path, by_name, by_stem]
        self._tables = [by_id, *files_first, by_number] if ids_first else [*files_first, by_id, by_number]

    def find(self, name: Any) -> Any | None:
        """The image id that a name stands for; ``None`` without one.

        Raises:
            ValueError: several images have the name.
        """
        if name in self._ids and not isinstance(name, str):
            return name
        text = str(name).replace("\\", "/")
        for candidate in dict.fromkeys((text, text.rpartition("/")[2], strip_image_suffix(text.rpartition("/")[2]))):
            for table in self._tables:
                found = table.get(candidate, ())
                if len(found) == 1:
                    if table is self._tables[-1]:
                        self.by_number.append(name)
                    return found[0]
                if found:
                    raise ValueError(f"{name!r} may be any of {len(found)} images of the set")
        return None


class ClassNames:
    """Class indices of a data set by name or by number; ``aliases`` lead from a tool's class name to the set's."""

    def __init__(self, truth: GroundTruth, aliases: Mapping[str, str] | None = None):
        self._truth = truth
        self._index = {name.lower(): i for i, name in enumerate(truth.class_names)}
        self._aliases = {old.lower(): new.lower() for old, new in (aliases or {}).items()}
        self._own = truth.category_index

    def by_name(self, name: str) -> int:
        key = name.strip().lower()
        key = self._aliases.get(key, key)
        if key not in self._index:
            known = ", ".join(self._truth.class_names)
            raise ValueError(f"class {name!r} is none of the data set's, which are {known}", "use --rename OLD=NEW")
        return self._index[key]

    def by_index(self, index: int) -> int:
        """A number that counts the set's classes from 0."""
        if not 0 <= index < len(self._truth.class_names):
            raise ValueError(f"class number {index} is outside 0 to {len(self._truth.class_names) - 1}")
        return index

    def by_own_id(self, category_id: Any) -> int:
        """One of the set's own category ids, as in COCO files."""
        if category_id not in self._own:
            known = ", ".join(f"{own} ({self._truth.class_names[index]})" for own, index in self._own.items())
            raise ValueError(
                f"category {category_id!r} is none of the data set's, which are {known}",
                "give the predictions of this data set, with its own category ids",
            )
        return self._own[category_id]

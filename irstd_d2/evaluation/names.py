"""What other tools call the images and the classes of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.image_io import strip_image_suffix
from .ground_truth import GroundTruth


class ImageNames:
    """The images of a data set by everything they may be called: id, file name with more or fewer folders, stem.

    With ``ids_first`` a name is an id before it is a file's name.

    Attributes:
        by_number: names that were found only as the number that a file's name stands for, as 7 for ``00007``.
    """

    def __init__(self, truth: GroundTruth, *, ids_first: bool):
        self.by_number: list[Any] = []
        self._ids = set(truth.image_ids)
        tables: list[dict[str, list[Any]]] = [{} for _ in range(4)]
        by_id, by_path, by_stem, by_number = tables
        for image_id, files in zip(truth.image_ids, truth.files):
            path = Path(files.image) if files.image else Path(str(image_id))
            stem = strip_image_suffix(path.name)
            for table, key in (
                (by_id, str(image_id)),
                *((by_path, name) for name in _ends(path.as_posix())),
                (by_stem, stem),
                (by_number, str(int(stem)) if stem.isdecimal() else ""),
            ):
                table.setdefault(key, []).append(image_id)
        by_number.pop("", None)
        tables = [by_id, by_path, by_stem] if ids_first else [by_path, by_stem, by_id]
        self._tables = [*tables, by_number]

    def find(self, name: Any) -> Any | None:
        """The image id that a name stands for; ``None`` without one.

        Raises:
            ValueError: several images have the name.
        """
        if name in self._ids and not isinstance(name, str):
            return name
        text = str(name).replace("\\", "/")
        for candidate in dict.fromkeys((*_ends(text), strip_image_suffix(text.rpartition("/")[2]))):
            for table in self._tables:
                found = table.get(candidate, ())
                if len(found) == 1:
                    if table is self._tables[-1]:
                        self.by_number.append(name)
                    return found[0]
                if found:
                    raise ValueError(f"{name!r} may be any of {len(found)} images of the set")
        return None


def _ends(path: str) -> list[str]:
    """A path with ever fewer of its folders: what two tools that see it from elsewhere have in common."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


class ClassNames:
    """Class indices of a data set by name or by number; ``aliases`` lead from a tool's class name to the set's."""

    def __init__(self, truth: GroundTruth, aliases: Mapping[str, str] | None = None):
        self._truth = truth
        self._index = {name.lower(): i for i, name in enumerate(truth.class_names)}
        self._aliases = {old.lower(): new.lower() for old, new in (aliases or {}).items()}
        self._own = truth.category_index

    def _key(self, name: str) -> str:
        key = name.strip().lower()
        return self._aliases.get(key, key)

    def __contains__(self, name: str) -> bool:
        return self._key(name) in self._index

    def by_name(self, name: str) -> int:
        if name not in self:
            known = ", ".join(self._truth.class_names)
            raise ValueError(f"class {name!r} is none of the data set's, which are {known}", "use --rename OLD=NEW")
        return self._index[self._key(name)]

    def by_label(self, label: str, *, is_index: bool = False) -> int:
        """A name, else a number that counts the classes from 0 (``is_index``: first); may be empty if there is one."""
        if not label and len(self._truth.class_names) > 1:
            raise ValueError(f"a detection has no class, the data set has {', '.join(self._truth.class_names)}")
        is_name = label in self._aliases or (label in self._index and not is_index)
        return self.by_index(int(label or 0)) if (label or "0").isdecimal() and not is_name else self.by_name(label)

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

"""Classes by name: the one table between the ids of a set's files, the indices of a model and what users read.

Two names are the same class when they differ in upper and lower case or in surrounding spaces only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import MetadataCatalog
from torch import nn

from ..errors import ConfigError

CategoryId = int | str


@dataclass(frozen=True)
class ClassTable:
    """Classes in the order of a model's outputs.

    Args:
        names: by class index.
        indices: from the ids in the set's own files to class indices; several ids may mean the same class.
    """

    names: tuple[str, ...]
    indices: Mapping[CategoryId, int]

    @classmethod
    def from_names(cls, names: Iterable[str]) -> ClassTable:
        """The table of a set whose files hold names; its ids are the class indices."""
        names = tuple(names)
        return cls(names, {i: i for i in range(len(names))})

    @classmethod
    def from_categories(
        cls,
        categories: Mapping[CategoryId, str],
        names: Sequence[str] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> ClassTable:
        """The table of a set whose files hold ids.

        A class without category gets an id that no category has, so that its detections can be written.

        Args:
            categories: all ids of the file with their names.
            names: the classes to take, in the order of their indices; ``None`` takes all, by first appearance.
            aliases: from a name in the file to the name that counts.
        """
        lookup, names = name_lookup(categories.values() if names is None else names, aliases, found=names is None)
        indices = {key: lookup[fold(name)] for key, name in categories.items() if fold(name) in lookup}
        unused = 1 + max((key for key in categories if isinstance(key, int)), default=-1)
        for index in sorted(set(range(len(names))) - set(indices.values())):
            indices[unused] = index
            unused += 1
        return cls(names, indices)

    @classmethod
    def from_metadata(cls, name: str) -> ClassTable | None:
        """The table that detectron2's ``MetadataCatalog`` has of a set, ``None`` before it is loaded."""
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes")
        if names is None:
            return None
        indices = metadata.get("thing_dataset_id_to_contiguous_id")
        return cls.from_names(names) if indices is None else cls(tuple(names), dict(indices))

    def to_metadata(self, name: str) -> None:
        """Set ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` of a registered set."""
        MetadataCatalog.get(name).set(
            thing_classes=list(self.names), thing_dataset_id_to_contiguous_id=dict(self.indices)
        )

    @property
    def ids(self) -> tuple[CategoryId, ...]:
        """The id of each class in the set's own files, by class index."""
        first: dict[int, CategoryId] = {}
        for key, index in self.indices.items():
            first.setdefault(index, key)
        return tuple(first[index] for index in range(len(self.names)))

    def to_json(self) -> list[dict[str, Any]]:
        """As COCO's ``categories``, in the order of the class indices; for checkpoints and exported models."""
        return [{"id": key, "name": name} for key, name in zip(self.ids, self.names)]

    @classmethod
    def from_json(cls, categories: Sequence[Mapping[str, Any]]) -> ClassTable:
        """What :meth:`to_json` wrote."""
        return cls(
            tuple(category["name"] for category in categories),
            {category["id"]: index for index, category in enumerate(categories)},
        )


def fold(name: str) -> str:
    """The form in which names are compared."""
    return name.strip().casefold()


def name_lookup(
    names: Iterable[str], aliases: Mapping[str, str] | None = None, *, found: bool = False
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Map names, as :func:`fold` returns them, to class indices.

    Args:
        names: the classes in order; of those that are the same, the first spelling is taken.
        aliases: from other names to one of them.
        found: ``names`` are those of a file, which aliases still replace.

    Returns:
        The map with the aliases in it, and the names.
    """
    same = {fold(name): target for name, target in (aliases or {}).items()}
    first: dict[str, str] = {}
    for name in names:
        target = same.get(fold(name), name) if found else name
        first.setdefault(fold(target), target)
    lookup = {key: index for index, key in enumerate(first)}
    lookup |= {key: lookup[fold(target)] for key, target in same.items() if fold(target) in lookup}
    return lookup, tuple(first.values())


def parse_aliases(entries: Iterable[str]) -> dict[str, str]:
    """Read ``DATASETS.CLASS_ALIASES``: ``name in the files=name that counts``."""
    aliases = {}
    for entry in entries:
        name, _, target = entry.partition("=")
        if not (name.strip() and target.strip()):
            raise ConfigError(f"DATASETS.CLASS_ALIASES has {entry!r}; write 'name in the files=name that counts'")
        aliases[name.strip()] = target.strip()
    return aliases


def require_same_names(
    first: tuple[str, Sequence[str]], second: tuple[str, Sequence[str]], *, same_order: bool = False
) -> None:
    """Refuse two lists of classes that are not the same.

    ``first`` and ``second`` say what has the classes (``"checkpoint model_final.pth"``) and their names. With
    ``same_order`` the indices must agree as well, as for the outputs of one model.

    Raises:
        ConfigError: with both sides and what to do.
    """
    (this, names), (that, others) = first, second
    ours, theirs = ([fold(name) for name in listed] for listed in (names, others))
    same = set(ours) == set(theirs)
    if same and same_order and ours != theirs:
        raise ConfigError(
            f"{this} has the classes {_list(names)}, but {that} has them in another order: {_list(others)}; "
            f"set DATASETS.CLASSES to {tuple(names)!r}"
        )
    if not same:
        raise ConfigError(
            f"{this} has the classes {_list(names)}, but {that} has {_list(others)}; name those to use in "
            "DATASETS.CLASSES (others are left out), or say which mean the same: DATASETS.CLASS_ALIASES "
            """'("name in the files=name of the model",)'"""
        )


def num_classes_of(model: nn.Module) -> tuple[int, str]:
    """The number of classes of a detector, and the key that sets it.

    Raises:
        ConfigError: the model does not tell.
    """
    detector: Any = model
    while not (hasattr(detector, "num_classes") or hasattr(detector, "roi_heads")):
        inner = next((getattr(detector, key) for key in ("model", "module") if hasattr(detector, key)), None)
        if not isinstance(inner, nn.Module):
            raise ConfigError(f"{type(detector).__name__} has no num_classes, which its data sets are compared with")
        detector = inner
    if hasattr(detector, "roi_heads"):
        return int(detector.roi_heads.num_classes), "MODEL.ROI_HEADS.NUM_CLASSES"
    parts = (detector, getattr(detector, "model", None))  # maybe wrapped
    kinds = {kind.__name__ for part in parts for kind in type(part).__mro__}
    key = "RETINANET" if "RetinaNet" in kinds else "FCOS"
    return int(detector.num_classes), f"MODEL.{key}.NUM_CLASSES"


def check_num_classes(model: nn.Module, classes: ClassTable, source: str) -> None:
    """Refuse a detector whose number of classes is not that of its data, before it costs a training.

    ``source`` is what has the classes, e.g. ``DATASETS.TRAIN ('mine_train',)``.

    Raises:
        ConfigError: with both numbers, the names and what to do.
    """
    number, key = num_classes_of(model)
    if number != len(classes.names):
        raise ConfigError(
            f"{key} is {number}, but {source} has {len(classes.names)} classes: {_list(classes.names)}; "
            f"set {key} to {len(classes.names)}, or name the {number} to use in DATASETS.CLASSES"
        )


def _list(names: Iterable[str], limit: int = 20) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more

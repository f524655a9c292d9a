"""Two-way, strict renaming of checkpoint tensors by a table of patterns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

# {i} matches a number, {p} the rest of a name; both stand for the same text on both sides of a rule.
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class NamingError(KeyError):
    """Tensors that no rule knows, or that two rules give the same name."""

    def __str__(self) -> str:
        return str(self.args[0])


def _to_regex(pattern: str) -> re.Pattern[str]:
    parts = _PLACEHOLDER.split(pattern)
    text = ""
    for literal, name in zip(parts[::2], [*parts[1::2], None]):
        text += re.escape(literal)
        if name:
            text += f"(?P<{name}>.+)" if name == "p" else f"(?P<{name}>\\d+)"
    return re.compile(text)


def _rename(name: str, source: str, target: str) -> str | None:
    match = _to_regex(source).fullmatch(name)
    return None if match is None else target.format(**match.groupdict())


@dataclass(frozen=True)
class Renamed:
    """The outcome of a renaming.

    Attributes:
        values: new name -> tensor.
        dropped: published tensors that the rules drop on purpose.
    """

    values: dict[str, Tensor]
    dropped: dict[str, Tensor]


@dataclass(frozen=True)
class NameMap:
    """Rules between published names and this project's.

    Attributes:
        rules: pairs (published pattern, our pattern); the first that matches is taken.
        dropped: published patterns without a counterpart here.
        restore: makes the dropped tensors from the renamed ones, as the published code loads only a complete file;
            gives none if they are not those of the published model.
    """

    rules: Sequence[tuple[str, str]]
    dropped: Sequence[str] = field(default=())
    restore: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None

    def to_ours(self, published: Mapping[str, Tensor]) -> Renamed:
        """Rename published tensors.

        Raises:
            NamingError: for names that no rule knows.
        """
        kept: dict[str, Tensor] = {}
        dropped: dict[str, Tensor] = {}
        for name, value in published.items():
            (dropped if any(_to_regex(p).fullmatch(name) for p in self.dropped) else kept)[name] = value
        return Renamed(self._apply(kept, self.rules), dropped)

    def to_published(self, ours: Mapping[str, Tensor]) -> Renamed:
        """Rename our tensors back, and make those that ours have not.

        Raises:
            NamingError: for names that no rule knows.
        """
        values = self._apply(ours, [(b, a) for a, b in self.rules])
        return Renamed(values | (self.restore(values) if self.restore else {}), {})

    @staticmethod
    def _apply(values: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
        rules = list(rules)
        result: dict[str, Tensor] = {}
        unknown = []
        for name, value in values.items():
            new = next((n for source, target in rules if (n := _rename(name, source, target)) is not None), None)
            if new is None:
                unknown.append(name)
            elif new in result:
                raise NamingError(f"two tensors become {new!r}, the second is {name!r}; is the file of another model?")
            else:
                result[new] = value
        if unknown:
            shown = ", ".join(unknown[:8]) + (" ..." if len(unknown) > 8 else "")
            raise NamingError(f"{len(unknown)} tensors have no counterpart: {shown}; is the file of another model?")
        return result


def resnet_rules(published: str = "backbone", ours: str = "backbone.bottom_up") -> list[tuple[str, str]]:
    """Rules for a ResNet with torchvision's names under a prefix (may be empty) and detectron2's."""
    dot = f"{published}." if published else ""
    rules = [(f"{dot}conv1.{{p}}", f"{ours}.stem.conv1.{{p}}"), (f"{dot}bn1.{{p}}", f"{ours}.stem.conv1.norm.{{p}}")]
    for stage in range(1, 5):
        a, b = f"{dot}layer{stage}.{{i}}", f"{ours}.res{stage + 1}.{{i}}"
        rules += [(f"{a}.conv{{k}}.{{p}}", f"{b}.conv{{k}}.{{p}}"), (f"{a}.bn{{k}}.{{p}}", f"{b}.conv{{k}}.norm.{{p}}")]
        rules += [
            (f"{a}.downsample.0.{{p}}", f"{b}.shortcut.{{p}}"),
            (f"{a}.downsample.1.{{p}}", f"{b}.shortcut.norm.{{p}}"),
        ]
    # Our patterns for a convolution also match those of its norm, so the more specific ones come first.
    return sorted(rules, key=lambda rule: ".norm." not in rule[1])


def fpn_rules(first_level: int, num_levels: int) -> list[tuple[str, str]]:
    """Rules for the lateral and output convolutions of an FPN; level i of the published one is ``first_level`` + i."""
    return [
        (f"neck.{published}_convs.{i}.conv.{{p}}", f"backbone.fpn_{ours}{first_level + i}.{{p}}")
        for i in range(num_levels)
        for published, ours in (("lateral", "lateral"), ("fpn", "output"))
    ]


# An ImageNet ResNet of torchvision; its classifier has no place in a detector.
RESNET_NAMES = NameMap(resnet_rules(published=""), dropped=("fc.{p}",))

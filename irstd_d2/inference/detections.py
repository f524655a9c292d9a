"""What a predictor finds in one image: numbers, pictures, and other libraries' forms."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Instances

from ..data.classes import ClassTable
from ..errors import ConfigError
from ..visualization import write_picture
from .pictures import draw_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Detections(Instances):
    """The detections of one image, best first: detectron2's ``Instances`` with ``pred_boxes``, ``scores`` and
    ``pred_classes``, and what makes them of use without detectron2.

    Args:
        instances: of a model, on the CPU.
        raw: the image: gray (H, W) or BGR (H, W, 3) in its own number type; may be memory-mapped.
        path: of its file, for messages and names.
        table: the classes of the model.
        high_bit_depth: how the model saw it, see :func:`irstd_d2.data.read_image`.
    """

    def __init__(
        self, instances: Instances, raw: np.ndarray, path: str | PathLike, table: ClassTable, high_bit_depth: str
    ):
        super().__init__(instances.image_size, **instances.get_fields())
        self._raw, self._path, self._table, self._high_bit_depth = raw, Path(path), table, high_bit_depth

    def __getitem__(self, item: Any) -> Detections:
        return Detections(super().__getitem__(item), self._raw, self._path, self._table, self._high_bit_depth)

    @property
    def boxes(self) -> torch.Tensor:
        """(N, 4) corners x1, y1, x2, y2 in pixels of the image."""
        return self.pred_boxes.tensor

    @property
    def classes(self) -> list[str]:
        """The name of each detection's class."""
        return [self._table.names[index] for index in self.pred_classes.tolist()]

    @property
    def category_ids(self) -> list[int | str]:
        """The id of each detection's class in the files of the training set."""
        return [self._table.ids[index] for index in self.pred_classes.tolist()]

    def picture(self, insets: int = 3) -> np.ndarray:
        """The image with brackets around the detections and zoomed parts beside it, RGB (height, width, 3) uint8."""
        return draw_result(self._raw, self._path, self, high_bit_depth=self._high_bit_depth, insets=insets)

    def save(self, path: str | PathLike) -> None:
        """Write the picture (``.png``), or the detections: ``.json`` (COCO), ``.csv``, ``.xml`` (VOC), ``.txt`` (YOLO).

        Raises:
            ConfigError: another suffix.
        """
        from .results import ImageResult, render

        path = Path(path)
        if path.suffix.lower() == ".png":
            path.parent.mkdir(parents=True, exist_ok=True)
            write_picture(path, self.picture())
            return
        render(path, [ImageResult.of(self._path.stem, self._path, None, {}, self)], self._table)

    def show(self) -> Figure:
        """Show the picture in a window or a notebook; returns the figure."""
        import matplotlib.pyplot as plt

        picture = self.picture()
        figure = plt.figure(figsize=(picture.shape[1] / 100, picture.shape[0] / 100))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(picture)
        axes.set_axis_off()
        plt.show()
        return figure

    def surface(self, index: int = 0, margin: int = 10) -> Figure:
        """The intensities around a detection as a surface in three dimensions, as the field's papers show targets.

        ``index`` 0 is the best detection, ``margin`` the pixels around its box.

        Raises:
            IndexError: there is no such detection.
        """
        import matplotlib.pyplot as plt

        if not 0 <= index < len(self):
            raise IndexError(f"detection {index} of {len(self)}")
        height, width = self._raw.shape[:2]
        x1, y1, x2, y2 = self.boxes[index].tolist()
        left, top = max(0, int(x1) - margin), max(0, int(y1) - margin)
        right, bottom = min(width, int(np.ceil(x2)) + margin), min(height, int(np.ceil(y2)) + margin)
        part = np.asarray(self._raw[top:bottom, left:right], np.float32)
        part = part[:, :, :3].mean(axis=2) if part.ndim == 3 else part
        columns, rows = np.meshgrid(np.arange(left, right), np.arange(top, bottom))
        figure = plt.figure(figsize=(6, 5))
        axes = figure.add_subplot(projection="3d")
        axes.plot_surface(columns, rows, part, cmap="viridis", rstride=1, cstride=1, linewidth=0)
        axes.invert_yaxis()
        axes.set(xlabel="x", ylabel="y", zlabel="value of the file")
        axes.set_title(f"{self.classes[index]} {self.scores[index]:.2f} at ({(x1 + x2) / 2:.0f}, {(y1 + y2) / 2:.0f})")
        return figure

    def to_supervision(self) -> Any:
        """As ``supervision.Detections``, with ``class_name`` in its data.

        Raises:
            ConfigError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ConfigError("supervision is not installed: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.numpy().astype(np.float32).reshape(-1, 4),
            confidence=self.scores.numpy(),
            class_id=self.pred_classes.numpy().astype(int),
            data={"class_name": np.array(self.classes, dtype=str)},
        )

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """As COCO results: ``bbox`` is x, y, width, height; ``category_id`` that of the training set.

        ``image_id`` is by default the file's name without suffix.
        """
        from .results import ImageResult, coco_rows

        rows = coco_rows([ImageResult.of(self._path.stem, self._path, None, {}, self)], self._table)
        return rows if image_id is None else [row | {"image_id": image_id} for row in rows]

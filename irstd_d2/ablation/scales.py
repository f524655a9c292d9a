"""At which size a table is trained: on which data, with which models, for how long.

A row's configuration is written for the published scale. At a smaller one the lines that make the row what it is (those
between its file and its system's base file) are put on top of a small configuration of the same system, so that no row
is written twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..config import get_config
from ..errors import ConfigError
from .tables import Options, Recipe, Row, Table

# A narrow bottleneck, where the depth of the backbone is what a table varies.
_NARROW_BOTTLENECK: Options = ("MODEL.RESNETS.WIDTH_PER_GROUP", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
# The released norms keep statistics of ImageNet; without its weights they have to be trained, and nothing is frozen.
FROM_SCRATCH: Options = (
    *("MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.NORM_EVAL", False, "MODEL.RESNETS.NORM_TRAINABLE", True),
)


@dataclass(frozen=True)
class Scale:
    """Data, models and length of the trainings of a table.

    Attributes:
        name: as on the command line.
        preset: ``cpu`` or ``gpu``.
        description: for the report, one sentence.
        papers: paper -> training and test set; a paper that is absent cannot be run at this scale.
        iterations: of one training; 0 keeps the schedule of the row's configuration.
        recipes: base file of a system -> its small configuration; empty runs the rows' own configurations.
        options: keys and values on top of every row.
        folder: that must exist below ``$DETECTRON2_DATASETS``; empty if the tool makes the data.
        limits: for the report, what the scale cannot show.
    """

    name: str
    preset: str
    description: str
    papers: Mapping[str, tuple[str, str]]
    iterations: int
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    options: Options = ()
    folder: str = ""
    limits: str = ""


# As configs/auxdet/tiny/auxdet_tiny.yaml: forms that a short training in small batches from random weights can bear.
_TINY_AUXDET: Options = (
    *("MODEL.FPN.NORM", "", "MODEL.AUXDET.ENCODER.NORM", "LN", "MODEL.AUXDET.ENCODER.DROPOUT", 0.1),
    *("MODEL.AUXDET.ENCODER.UNKNOWN", "learned", "MODEL.AUXDET.M2DM.DETACH_KERNELS", False),
    *("MODEL.AUXDET.LEEM.CONNECTION", "depthwise", "MODEL.AUXDET.LEEM.INIT", "laplacian_identity"),
)
_BACKGROUND: Options = ("INPUT.MAPPER", "BackgroundDatasetMapper")
_TINY_RECIPES = {
    "auxdet/Base-CascadeRPN.yaml": Recipe("auxdet/tiny/cascade_rpn_tiny.yaml"),
    "auxdet/Base-AuxDet.yaml": Recipe("auxdet/tiny/auxdet_tiny.yaml"),
    "auxdet/ablation/Base-Table9-FasterRCNN.yaml": Recipe("baselines/tiny/faster_rcnn_tiny.yaml", _TINY_AUXDET),
    "auxdet/ablation/Base-Table9-CascadeRCNN.yaml": Recipe("baselines/tiny/cascade_rcnn_tiny.yaml", _TINY_AUXDET),
    "bafe/Base-FCOS.yaml": Recipe("bafe/tiny/fcos_tiny.yaml", _BACKGROUND),
    "bafe/Base-BAFE.yaml": Recipe("bafe/tiny/bafe_tiny.yaml", (*_BACKGROUND, "INPUT.BAG_CP.ENABLED", True)),
}
_FINE_RECIPES = {
    "bafe/Base-FCOS.yaml": Recipe("bafe/tiny/fcos_fine.yaml"),
    "bafe/Base-BAFE.yaml": Recipe("bafe/tiny/bafe_fine.yaml"),
}
# One evaluation at the end, in the papers' protocol; loading in the training's own process.
_TINY_OPTIONS: Options = (
    *("DATALOADER.NUM_WORKERS", 0, "TEST.EVAL_PERIOD", 0, "TEST.EVALUATORS", ("coco", "voc_paper")),
    *("TEST.BEST_METRIC", "", "TEST.GROUP_BY", (), "SOLVER.CHECKPOINT_KEEP", 1),
)
_REAL_CPU: Options = (*_TINY_OPTIONS, "INPUT.FIXED_SIZE", (256, 256), "SOLVER.IMS_PER_BATCH", 4)
_WIDE = {"auxdet": ("wideirstd_train", "wideirstd_val")}
_DENSE = {"bafe": ("densesirst_v2_trainval", "densesirst_v2_test")}
_TINY_LIMITS = (
    "The models are narrow (backbone of 10 layers and 16 to 128 channels, pyramid of 32), start from random weights "
    "and train briefly. What holds or fails here says how the parts behave under these conditions; it neither confirms "
    "nor refutes the paper's figures at full scale."
)
_PUBLISHED_LIMITS = "The published models are trained once per seed; the paper's figures are of one run each."

SCALES = (
    Scale(
        "synthetic",
        "cpu",
        "synthetic scenes of 128x128 pixels, made by the command; AuxDet's rows on scenes where only platform and band "
        "tell targets from clutter, BAFE-Net's on scenes where only the sky does",
        {
            "auxdet": ("synthetic_omni_train", "synthetic_omni_val"),
            "bafe": ("synthetic_dense_train", "synthetic_dense_val"),
        },
        300,
        _TINY_RECIPES,
        _TINY_OPTIONS,
        limits=_TINY_LIMITS + " The scenes are drawings after physical rules of thumb, made so that metadata and sky "
        "matter: they favour the methods under study.",
    ),
    Scale(
        "fine",
        "cpu",
        "the real DenseSIRST at native resolution: crops of 128x128 pixels of the 768 training images, enlarged twice; "
        "every fourth of the 256 test images, whole and enlarged twice",
        {"bafe": ("densesirst_v2_trainval", "densesirst_v2_test_quarter")},
        300,
        _FINE_RECIPES,
        _TINY_OPTIONS,
        "SIRSTdevkit",
        _TINY_LIMITS + " A quarter of the test images adds noise to that of the trainings.",
    ),
    Scale(
        "dense",
        "cpu",
        "the real DenseSIRST, 768 training and 256 test images at 256x256 pixels",
        _DENSE,
        1000,
        _TINY_RECIPES,
        _REAL_CPU,
        "SIRSTdevkit",
        _TINY_LIMITS + " At 256x256 pixels most targets are under three pixels wide.",
    ),
    Scale(
        "dense",
        "gpu",
        "the real DenseSIRST, 768 training and 256 test images at 512x512 pixels, the published configuration",
        _DENSE,
        0,
        folder="SIRSTdevkit",
        limits=_PUBLISHED_LIMITS,
    ),
    Scale(
        "omni",
        "cpu",
        "real images in WideIRSTD's layout, a small sample, at 256x256 pixels",
        _WIDE,
        600,
        _TINY_RECIPES,
        _REAL_CPU,
        "WideIRSTD-Full",
        _TINY_LIMITS + " A sample of a few hundred images is far from WideIRSTD-Full's 9,000.",
    ),
    Scale(
        "omni",
        "gpu",
        "real images in WideIRSTD's layout, a small sample, at 1024x1024 pixels, the published configuration with a "
        "schedule in iterations",
        _WIDE,
        4000,
        options=("TEST.EVAL_PERIOD", 0, "SOLVER.CHECKPOINT_PERIOD", 500),
        folder="WideIRSTD-Full",
        limits=_PUBLISHED_LIMITS + " A sample of a few hundred images is far from WideIRSTD-Full's 9,000.",
    ),
    Scale(
        "wide",
        "cpu",
        "WideIRSTD-Full at 256x256 pixels",
        _WIDE,
        3000,
        _TINY_RECIPES,
        _REAL_CPU,
        "WideIRSTD-Full",
        _TINY_LIMITS,
    ),
    Scale(
        "wide",
        "gpu",
        "WideIRSTD-Full, 7,000 training and 2,000 validation images at 1024x1024 pixels, the published configuration",
        _WIDE,
        0,
        folder="WideIRSTD-Full",
        limits=_PUBLISHED_LIMITS,
    ),
)


def get_scale(name: str, preset: str) -> Scale:
    """Return a scale; ``synthetic`` has one preset only, which is then taken.

    Raises:
        ConfigError: for an unknown name or preset.
    """
    named = [scale for scale in SCALES if scale.name == name]
    if not named:
        raise ConfigError(f"there is no scale {name!r}; known are {sorted({scale.name for scale in SCALES})}")
    if len(named) == 1:
        return named[0]
    for scale in named:
        if scale.preset == preset:
            return scale
    raise ConfigError(f"scale {name!r} has no preset {preset!r}; known are {[scale.preset for scale in named]}")


def own_lines(path: Path, bases: Mapping[Path, Recipe]) -> tuple[Recipe, dict[str, Any]]:
    """Return the small configuration of a row's system, and what the files down to its base say besides it.

    Args:
        path: the row's file.
        bases: base file -> recipe.

    Raises:
        ConfigError: if the row's chain of ``_BASE_`` meets none of the bases.
    """
    lines: dict[str, Any] = {}
    current = path
    while current.resolve() not in bases:
        content = yaml.safe_load(current.read_text(encoding="utf-8")) or {}
        base = content.pop("_BASE_", None)
        if base is None:
            raise ConfigError(f"{path}: _BASE_ leads to none of {sorted(map(str, bases))}; add a recipe for {current}")
        lines = _merged(content, lines)
        current = current.parent / base
    lines.pop("OUTPUT_DIR", None)
    return bases[current.resolve()], lines


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if nested else value
    return result


def resolve(
    row: Row,
    table: Table,
    scale: Scale,
    configs: str | PathLike,
    *,
    seed: int = 0,
    iterations: int = 0,
    options: Sequence[Any] = (),
) -> CfgNode:
    """Return the configuration of one training.

    Args:
        row: of ``table``, with a configuration.
        table: decides whether the depth of the backbone is kept at a small scale.
        scale: where and how long.
        configs: the folder ``configs/``.
        seed: of the training.
        iterations: in place of the scale's; the steps of a schedule keep their places.
        options: keys and values on top of everything, as on the command line.

    Raises:
        ConfigError: if the scale has no data for the table's paper, or the row is not made for the scale.
    """
    fitting = sorted({s.name for s in SCALES if table.paper in s.papers})
    if scale.recipes and row.small and table.small_scales:
        fitting = [name for name in fitting if name in table.small_scales]
    if scale.name not in fitting:
        raise ConfigError(f"table {table.name} cannot be run at scale {scale.name!r}; use one of {fitting}")
    if not (row.config or scale.recipes):
        raise ConfigError(f"row {row.name} of {table.name} is made for small scales only; use --preset cpu")
    configs = Path(configs)
    if scale.recipes and row.small:
        cfg = get_config(configs / row.small.config, row.small.options)
    elif scale.recipes:
        bases = {(configs / name).resolve(): recipe for name, recipe in scale.recipes.items()}
        recipe, lines = own_lines(configs / row.config, bases)
        cfg = get_config(configs / recipe.config, recipe.options)
        depth = lines.get("MODEL", {}).get("RESNETS", {}).pop("DEPTH", None)
        cfg.merge_from_other_cfg(CfgNode(lines))
        if table.varies_depth and depth is not None:
            narrow = _NARROW_BOTTLENECK if depth >= 50 else ()
            cfg.merge_from_list(["MODEL.RESNETS.DEPTH", depth, *narrow])
    else:
        cfg = get_config(configs / row.config)
        if not _given(options, "MODEL.WEIGHTS"):
            cfg.merge_from_list(list(FROM_SCRATCH))
    train, test = scale.papers[table.paper]
    cfg.merge_from_list([*scale.options, "DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,), "SEED", seed])
    if length := iterations or scale.iterations:
        _set_length(cfg, length)
    cfg.merge_from_list([_for_depth(value, cfg.MODEL.RESNETS.DEPTH) for value in options])
    return cfg


def _given(options: Sequence[Any], key: str) -> bool:
    return bool(dict(zip(options[::2], options[1::2])).get(key))


def _for_depth(value: Any, depth: int) -> Any:
    """Put the backbone's depth into a value such as ``weights/resnet{depth}.pth``."""
    return value.replace("{depth}", str(depth)) if isinstance(value, str) else value


def _set_length(cfg: CfgNode, iterations: int) -> None:
    """Train for so many iterations; steps given in epochs keep their place in the schedule, warm-up stays short."""
    solver = cfg.SOLVER
    steps: list[int] = []
    if solver.MAX_EPOCHS:
        steps = [round(iterations * epoch / solver.MAX_EPOCHS) for epoch in solver.STEP_EPOCHS]
    cfg.merge_from_list(
        [
            *("SOLVER.MAX_ITER", iterations, "SOLVER.MAX_EPOCHS", 0, "SOLVER.STEP_EPOCHS", ()),
            *("SOLVER.STEPS", tuple(steps), "SOLVER.WARMUP_ITERS", min(solver.WARMUP_ITERS, iterations // 8)),
            *("SOLVER.CHECKPOINT_PERIOD", min(solver.CHECKPOINT_PERIOD, max(1, iterations // 3))),
        ]
    )

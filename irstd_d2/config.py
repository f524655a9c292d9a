"""Configuration of the project: one ``CfgNode`` with the keys of this package and of the systems in use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from os import PathLike, fspath
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from .data.config import add_data_config
from .data.datasets import register_own_sets
from .errors import ConfigError
from .modeling.config import add_backbone_config
from .systems import installed_systems, registered_systems


def add_irstd_config(cfg: CfgNode) -> None:
    """Add the keys that both systems share to ``cfg``, in place."""
    _add_model_keys(cfg)
    add_backbone_config(cfg)
    _add_fcos_keys(cfg)
    add_data_config(cfg)
    _add_training_keys(cfg)
    _add_evaluation_keys(cfg)


def _add_model_keys(cfg: CfgNode) -> None:
    # How much of the model MODEL.WEIGHTS must fill: "complete", all of it, or to begin a training the whole backbone;
    # "partial", whatever fits; "none", the same, and no weights are needed.
    cfg.MODEL.WEIGHTS_MATCH = "complete"
    # Weights and feature maps with the channels innermost: faster convolutions, above all on CPUs and with autocast.
    cfg.MODEL.CHANNELS_LAST = False
    # Batch norm of the backbone keeps its running statistics in training, as with pretrained weights.
    cfg.MODEL.RESNETS.NORM_EVAL = False
    # Whether the scale and shift of the backbone's norms are trained.
    cfg.MODEL.RESNETS.NORM_TRAINABLE = True
    # Extra pyramid levels: "none", "maxpool" (P6 by subsampling), "p6" (one stride-2 conv on the last output),
    # "p6p7" (RetinaNet's, from the last backbone stage).
    cfg.MODEL.FPN.TOP_BLOCK = "none"
    # Pyramid levels that leave the neck, e.g. ["p2", "p3"]; empty means all. The others are not computed.
    cfg.MODEL.FPN.OUT_FEATURES = []
    # C of the normalised Wasserstein distance of boxes in network pixels, wherever it is used: about the mean edge of
    # the targets (12.8: of AI-TOD, for which it was made).
    cfg.MODEL.NWD_SCALE = 12.8


def _add_fcos_keys(cfg: CfgNode) -> None:
    cfg.MODEL.FCOS = fcos = CfgNode()
    fcos.NUM_CLASSES = 1
    # Pyramid levels, finest first; their strides come from the backbone.
    fcos.IN_FEATURES = ("p3", "p4", "p5")
    # Per level the smallest and largest distance from a point to a side of its target, in network pixels.
    fcos.REGRESS_RANGES = ((-1, 64), (64, 128), (128, 256))
    # Points within so many strides of a target's centre are positive; 0: all points inside the target.
    fcos.CENTER_SAMPLING_RADIUS = 0.0
    # How points get their targets: "inside" (the smallest target that a point lies in, published) or "rfla", by
    # Gaussian receptive fields (REGRESS_RANGES and CENTER_SAMPLING_RADIUS then have no effect).
    fcos.ASSIGNMENT = "inside"
    fcos.RFLA = rfla = CfgNode()
    # Width of each level's effective receptive field in network pixels; empty: half of the ResNet's theoretical one.
    rfla.FIELD_WIDTHS = ()
    # Of receptive fields and targets: "kl" or "wasserstein".
    rfla.DISTANCE = "kl"
    # Points per target: of the first stage, and of the second, for which the fields are multiplied by DECAY.
    rfla.TOPK = (3, 1)
    rfla.DECAY = 0.9
    # "iou" (-log IoU, published), "linear_iou" (1 - IoU), "giou", "diou" or "ciou"; the share of 1 - NWD in its place.
    fcos.BBOX_REG_LOSS_TYPE = "iou"
    fcos.NWD_LOSS_SHARE = 0.0
    fcos.NUM_CONVS = 4
    fcos.NORM = "GN"
    # Class probability of every point before training.
    fcos.PRIOR_PROB = 0.01
    fcos.FOCAL_LOSS_ALPHA = 0.25
    fcos.FOCAL_LOSS_GAMMA = 2.0
    # Test time: threshold on the class probability, candidates per level, NMS.
    fcos.SCORE_THRESH_TEST = 0.05
    fcos.TOPK_CANDIDATES_TEST = 1000
    fcos.NMS_THRESH_TEST = 0.5
    # Final score: class probability times centerness ("product", the papers' implementation) or its root ("sqrt").
    fcos.SCORE_MODE = "product"


def _add_training_keys(cfg: CfgNode) -> None:
    # "SGD", "ADAMW", or "DADAPT_ADAM" (learning-rate free; BASE_LR 1.0).
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.BETAS = (0.9, 0.999)
    # Length and steps in epochs; 0 and () leave MAX_ITER and STEPS as they are.
    cfg.SOLVER.MAX_EPOCHS = 0
    cfg.SOLVER.STEP_EPOCHS = ()
    # How often each image is seen in one epoch (BAFE-Net: 3).
    cfg.SOLVER.REPEAT_DATASET = 1
    # Checkpoints kept beside the best and the final one; 0 keeps all.
    cfg.SOLVER.CHECKPOINT_KEEP = 3
    # Autocast type when SOLVER.AMP.ENABLED: "bfloat16" or "float16".
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    cfg.SOLVER.EMA = CfgNode()
    cfg.SOLVER.EMA.ENABLED = False
    # Share of the average kept per step.
    cfg.SOLVER.EMA.DECAY = 0.999
    cfg.register_deprecated_key("DATALOADER.MAX_RESTARTS")  # in the config.yaml of runs up to 0.3.0
    # Training can be resumed exactly; images of one batch are not sorted by shape.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False


def _add_evaluation_keys(cfg: CfgNode) -> None:
    # Names in EVALUATOR_REGISTRY, in the order of the tables.
    cfg.TEST.EVALUATORS = ("coco",)
    # What metrics are broken down by: "platform", "band", "resolution" or any key of the metadata for images; "size",
    # "contrast", "sky" for targets.
    cfg.TEST.GROUP_BY = ()
    # IoU at which a detection is right for the evaluators "voc" and "voc_paper".
    cfg.TEST.VOC_IOU_THRESHOLDS = (0.5,)
    # Largest distances of centres at which a detection is right for the evaluator "centre", in original pixels.
    cfg.TEST.CENTRE_DISTANCES = (1.0, 2.0, 3.0, 5.0)
    # Metric whose best checkpoint is kept as model_best.pth, e.g. "bbox/AP50"; empty keeps none.
    cfg.TEST.BEST_METRIC = ""
    # Detections above this score enter Pd, Fa and precision.
    cfg.TEST.SCORE_THRESHOLD = 0.5
    # Folder of true masks for the evaluator "mask"; empty: those that the data set's layout has.
    cfg.TEST.TARGET_MASKS = ""
    # Test-time augmentation, detectron2's TEST.AUG.ENABLED, for any detector: factors of the network's input, and
    # lengths of its shorter edge in network pixels (detectron2's key, bounded by MAX_SIZE) beside them.
    cfg.TEST.AUG.SCALES = (1.0,)
    cfg.TEST.AUG.MIN_SIZES = ()
    # Beside FLIP, left and right: every view upside down as well.
    cfg.TEST.AUG.VERTICAL_FLIP = False
    # Detections of a target in several views: "vote" averages boxes and scores, "nms" takes the best (detectron2).
    cfg.TEST.AUG.MERGE = "vote"


@contextmanager
def _faults_of(source: str, cfg: CfgNode) -> Iterator[None]:
    """Name the source of what is wrong with keys and values, and the key that was meant."""
    try:
        yield
    except (AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        problem = error.args[0] if isinstance(error, KeyError) else error
        hint = _new_name(error.filename) if isinstance(error, FileNotFoundError) else _hint(str(problem), cfg)
        raise ConfigError(f"{source}: {problem}{hint}") from error


def _hint(problem: str, cfg: CfgNode) -> str:
    """What an unknown key was meant to be, or needs."""
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", problem)
    if not unknown:
        return ""
    near = get_close_matches(unknown[1], _all_keys(cfg), n=1, cutoff=0.8)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = {system.name for system in registered_systems()}
    missing = [name for name in installed_systems() if name not in known]
    if missing:
        hint += f". Keys of {' and '.join(missing)} are known after `import {', '.join(missing)}`"
    return hint


def _all_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _all_keys(value, f"{prefix}{key}.")


def _new_name(missing: str) -> str:
    """What ``renamed.tsv`` in a folder above a missing file says about it."""
    path = Path(missing).resolve()
    for folder in path.parents:
        table = folder / "renamed.tsv"
        if table.is_file():
            for line in table.read_text(encoding="utf-8").splitlines():
                pattern, _, now = line.partition("\t")
                match = re.fullmatch(pattern, path.relative_to(folder).as_posix())
                if now and match:
                    return f". It is now {match.expand(now)}"
    return ""


def get_config(path: str | PathLike | None = None, opts: Sequence[str] = ()) -> CfgNode:
    """Return a ``CfgNode`` with the keys of detectron2, this package and the imported systems, merged from a file.

    The data sets of ``DATASETS.OWN`` are registered.

    Args:
        path: a YAML file of this project or the user's own; ``None`` gives the defaults.
        opts: alternating keys and values, as on the command line: ``["SOLVER.MAX_ITER", 100]``.

    Returns:
        An unfrozen ``CfgNode`` for ``detectron2.modeling.build_model``.

    Raises:
        ConfigError: the file is missing or not YAML, or a key is unknown or of another type.
    """
    cfg = get_cfg()
    add_irstd_config(cfg)
    for system in registered_systems():
        system.add_config(cfg)
    if path is not None:
        if not PathManager.isfile(fspath(path)):
            raise ConfigError(f"configuration {fspath(path)}: the file does not exist{_new_name(fspath(path))}")
        with _faults_of(f"configuration {fspath(path)}", cfg):
            cfg.merge_from_file(fspath(path), allow_unsafe=False)  # a file from a stranger cannot run code
    with _faults_of("configuration keys", cfg):
        cfg.merge_from_list(list(opts))
    register_own_sets(cfg.DATASETS.OWN)
    return cfg


def choose_device(cfg: CfgNode, opts: Sequence[str] = ()) -> bool:
    """Set ``MODEL.DEVICE`` to the CPU where there is no GPU; return whether that replaced another.

    Raises:
        ConfigError: the device is none, or ``opts``, keys and values from the command line, ask for a missing GPU.
    """
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; use 'cuda', 'cuda:1' or 'cpu'") from error
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return False
    if "MODEL.DEVICE" in opts[::2]:
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but there is no CUDA device here; use MODEL.DEVICE cpu")
    cfg.MODEL.DEVICE = "cpu"
    return True

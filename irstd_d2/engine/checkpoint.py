"""Checkpoints that survive a crash and never run code from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import model_zoo
from ..checkpoint import load_plain
from ..data.classes import ClassTable
from ..errors import ConfigError, DatasetError, check_known, first_of
from ..files import write_atomically
from ..modeling.timm_backbone import TimmBackbone

# How much of a model a file must fill: all of it; all or the whole pretrained backbone; whatever fits.
Match = Literal["complete", "backbone", "partial"]
# Prefixes of what a pretrained backbone fills, without the pyramid; the first that a model has counts.
_PRETRAINED = ("backbone.bottom_up.", "backbone.net.", "backbone.")
# Of an ImageNet classifier; they have no place in a detector.
_CLASSIFIER = re.compile(r"(.*\.)?(fc|classifier|head|stem\.fc|fc1000)\.(weight|bias)")
# Counts of batches, which files of older versions lack and which no result depends on.
_COUNTER = ".num_batches_tracked"


class IRSTDCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer with atomic writes, weights-only reading and a way back from a torn file.

    A resume takes ``model_NNNNNNN.pth`` or ``model_final.pth``; files of other names (``model_best.pth``) are for use
    as ``MODEL.WEIGHTS``.

    Args:
        save_dir: folder of the checkpoints.
        deployed: the module whose weights are the file's ``model``, when it is not ``model`` itself: averaged weights.
        match: how much of the model the weights of :meth:`load` must fill; a resume must fill it all.
        facts: plain data to save with every checkpoint, which :func:`read_facts` reads again.
        checkpointables: state to save and restore beside the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        deployed: nn.Module | None = None,
        match: Match = "complete",
        facts: Mapping[str, Any] | None = None,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.match, self.facts = match, dict(facts or {})
        self.deployed = self.model if deployed is None else deployed

    def save(self, name: str, **kwargs: Any) -> None:
        """Save weights and state as ``NAME.pth``; a resume takes it from then on if the name says so.

        Raises:
            OSError: it cannot be written; earlier checkpoints are untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.deployed.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(self.facts | kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save(data, file))
        if iteration_of(path) is not None:
            self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from, be it only checkpoints whose pointer file was lost."""
        return bool(self.save_dir) and bool(self.resume_candidates())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the newest readable checkpoint of the folder, else load the weights at ``path``.

        Raises:
            RuntimeError: when the folder has checkpoints but none can be read.
        """
        newest = self.newest_readable() if resume else None
        if newest is None:
            return self.load(path, checkpointables=[])
        wanted, self.match = self.match, "complete"
        try:
            return self.load(str(newest))
        finally:
            self.match = wanted

    def newest_readable(self) -> Path | None:
        """The checkpoint that a resume goes on from; ``None`` in a folder without any.

        Raises:
            RuntimeError: when the folder has checkpoints but none can be read.
        """
        candidates = self.resume_candidates()
        for candidate in candidates:
            try:
                load_plain(candidate, mmap=True)
            except DatasetError as error:
                self.logger.warning("%s %s; going back to the one before", candidate, error.problem)
                continue
            return candidate
        if candidates:
            raise RuntimeError(
                f"none of the {len(candidates)} checkpoints in {self.save_dir} can be read; "
                "remove the folder to start again, or restore one of them"
            )
        return None

    def resume_candidates(self) -> list[Path]:
        """The checkpoints a resume tries in turn: the one that ``last_checkpoint`` names, then older ones.

        Checkpoints beyond the named one are left over from an earlier run in the same folder and are not tried.
        """
        folder = Path(self.save_dir)
        found = {
            path: iteration for path in folder.glob("model_*.pth") if (iteration := iteration_of(path)) is not None
        }
        newest_first = sorted(found, key=lambda path: found[path], reverse=True)
        tagged = Path(self.get_checkpoint_file())
        if tagged not in found:
            return newest_first
        return [tagged, *(path for path in newest_first if found[path] < found[tagged])]

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights, of a file or a model of the zoo, and, of ``checkpointables``, the state; see detectron2.

        Raises:
            ConfigError: there is no such file, it is a pickle, or it does not fill as much of the model as ``match``
                asks for.
            DatasetError: the file is damaged or holds more than tensors and plain data.
        """
        if path and "://" not in path:
            path = model_zoo.resolve_weights(path)
        self._source = path
        return super().load(path, checkpointables=checkpointables)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = super()._load_model(checkpoint)
        names = [name for name in self.model.state_dict() if not name.endswith(_COUNTER)]
        misshapen = {name for name, *_ in found.incorrect_shapes}  # detectron2 counts them as missing too
        missing = [name for name in found.missing_keys if not name.endswith(_COUNTER) and name not in misshapen]
        unknown = [name for name in found.unexpected_keys if not _CLASSIFIER.fullmatch(name)]
        filled = len(names) - len(missing) - len(misshapen)
        if self._fits(names, missing, unknown, found.incorrect_shapes, filled):
            self.logger.info("%s fills %d of %d tensors of the model", self._source, filled, len(names))
            # What is left is reported in one line, as the error would be, in place of a line for each tensor.
            if left := _differences(missing, unknown, found.incorrect_shapes):
                self.logger.warning("not filled or not used: %s", left)
            return None
        raise ConfigError(
            f"MODEL.WEIGHTS {self._source} fills {filled} of {len(names)} tensors of the model: "
            f"{_differences(missing, unknown, found.incorrect_shapes)}. Is it of another model or number of classes? "
            "Published and ImageNet files are renamed by irstd convert-checkpoint; to use what fits, set "
            "MODEL.WEIGHTS_MATCH partial"
        )

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):
            raise ConfigError(
                f"MODEL.WEIGHTS is {filename}: pickle files can run code when they are read. If you trust its source, "
                'load it once elsewhere and save {"model": the weights as tensors} with torch.save'
            )
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return load_plain(f)

    def _fits(
        self, names: Sequence[str], missing: Sequence[str], unknown: Sequence[str], shapes: Sequence[Any], filled: int
    ) -> bool:
        if self.match == "partial":
            return filled > 0
        if shapes:
            return False
        if not missing and not unknown:
            return True
        if self.match != "backbone":
            return False
        # A pretrained backbone, of which the model may use fewer stages.
        prefix = next((prefix for prefix in _PRETRAINED if any(name.startswith(prefix) for name in names)), None)
        if prefix is None:
            return False
        return all(name.startswith(prefix) for name in unknown) and not any(name.startswith(prefix) for name in missing)


def iteration_of(path: Path) -> float | None:
    """The iteration in the name of a checkpoint to resume from, infinite for the final one; ``None`` for others."""
    if path.name == "model_final.pth":
        return float("inf")
    number = re.fullmatch(r"model_(\d+)\.pth", path.name)
    return int(number[1]) if number else None


def _differences(missing: Sequence[str], unknown: Sequence[str], shapes: Sequence[tuple[str, Any, Any]]) -> str:
    parts = [
        (len(missing), "missing", missing),
        (len(shapes), "of another shape", [f"{name} {a} in the file, {b} in the model" for name, a, b in shapes]),
        (len(unknown), "unknown to the model", unknown),
    ]
    return "; ".join(f"{count} {what} ({first_of(names, 3)})" for count, what, names in parts if count)


def match_of(cfg: CfgNode, *, train: bool = False) -> Match:
    """How much of a model ``MODEL.WEIGHTS`` must fill.

    Raises:
        ConfigError: ``MODEL.WEIGHTS_MATCH`` has another value.
    """
    wanted = cfg.MODEL.WEIGHTS_MATCH
    check_known("MODEL.WEIGHTS_MATCH", wanted, ("complete", "partial", "none"))
    if wanted == "complete":
        return "backbone" if train else "complete"
    return "partial"


def load_weights(model: nn.Module, cfg: CfgNode) -> ClassTable | None:
    """Load ``MODEL.WEIGHTS`` into a model that is to be used as it is: to detect, to be evaluated, to be exported.

    Returns:
        The classes that the file carries, ``None`` where it has none.

    Raises:
        ConfigError: there are no weights, or they are not all of the model's; ``MODEL.WEIGHTS_MATCH`` permits it.
        DatasetError: the file is damaged or holds more than tensors and plain data.
    """
    match = match_of(cfg)
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.WEIGHTS_MATCH != "none":
        raise ConfigError(
            "MODEL.WEIGHTS is empty, so the detector would be random; set it to a checkpoint, such as "
            "OUTPUT_DIR/model_final.pth (or MODEL.WEIGHTS_MATCH none to try a detector without weights)"
        )
    return classes_of(IRSTDCheckpointer(model, match=match).load(cfg.MODEL.WEIGHTS))


def classes_of(content: Mapping[str, Any]) -> ClassTable | None:
    """The classes that a checkpoint carries; ``None`` in those of other programs and of versions up to 0.3.0."""
    return ClassTable.from_json(content["classes"]) if content.get("classes") else None


def read_facts(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run and classes, without its tensors."""
    content = load_plain(path, mmap=True)
    return {key: content[key] for key in ("run", "classes", "iteration") if key in content}


def refuse_frozen_random(model: nn.Module, cfg: CfgNode) -> None:
    """Refuse to train a model from random weights when a part of it would stay random.

    Raises:
        ConfigError: naming what is frozen, the keys, and a configuration that trains everything.
    """
    if cfg.MODEL.WEIGHTS or cfg.MODEL.WEIGHTS_MATCH == "none":
        return
    if any(isinstance(module, TimmBackbone) and module.pretrained for module in model.modules()):
        return
    model.train()
    names = [name for name, _ in model.named_parameters()]
    # Only what lies below a pyramid can be pretrained; levels that the pyramid leaves out are frozen and never run.
    prefix = next((prefix for prefix in _PRETRAINED if any(name.startswith(prefix) for name in names)), "backbone.")
    parts = [name for name, p in model.named_parameters() if name.startswith(prefix) and not p.requires_grad]
    # Norms with fixed statistics, which at the start of a training are those of no data.
    parts += [
        name
        for name, module in model.named_modules()
        if isinstance(module, FrozenBatchNorm2d) or (isinstance(module, _BatchNorm) and not module.training)
    ]
    if parts:
        raise ConfigError(
            f"MODEL.WEIGHTS is empty, but the configuration freezes {len(parts)} weights and norms of the model "
            f"({first_of(parts, 3)}), which would stay as they are at random. Set MODEL.WEIGHTS to a pretrained "
            "backbone (docs/training.md, Weights), or take a configuration from random weights, such as "
            "configs/bafe/*_scratch.yaml, or the keys that make one: MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN "
            "MODEL.RESNETS.NORM_EVAL False MODEL.RESNETS.NORM_TRAINABLE True"
        )

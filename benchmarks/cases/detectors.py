"""Whole detectors at inference and in training, beside detectron2's own and the baselines; see also published.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import detectron2
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from harness import Bench
from torch import nn

import auxdet_d2  # noqa: F401
import bafe_d2  # noqa: F401
from irstd_d2 import get_config
from irstd_d2.inference import optimize

from .scenes import sample, sample_with_context

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODEL_ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"  # its module needs an old setuptools


def build(name: str, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return build_model(get_config(CONFIGS / name, ["MODEL.DEVICE", str(device)]))


def detectron2_faster_rcnn(device: torch.device) -> nn.Module:
    """Faster R-CNN R50-FPN with one class, as detectron2's model zoo has it."""
    cfg = get_cfg()
    cfg.merge_from_file(str(MODEL_ZOO / "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", str(device), "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", 1])
    torch.manual_seed(0)
    return build_model(cfg)


def detectron2_fcos(device: torch.device) -> nn.Module:
    """FCOS R50-FPN with one class, as detectron2's model zoo has it."""
    config = LazyConfig.load(str(MODEL_ZOO / "common/models/fcos.py")).model
    config.num_classes = 1
    torch.manual_seed(0)
    return instantiate(config).to(device)


def inference(model: nn.Module, samples: list) -> Callable[[], object]:
    def work() -> object:
        model.eval()
        with torch.inference_mode():
            return model(samples)

    return work


def training_step(model: nn.Module, samples: list) -> Callable[[], None]:
    def work() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        with EventStorage(0):
            torch.stack(list(model(samples).values())).sum().backward()

    return work


def run(bench: Bench) -> None:
    size = 64 if bench.quick else 512
    device = bench.device
    samples = [sample(size), sample(size)]
    tiny = bench.quick
    auxdet = build("auxdet/tiny/auxdet_tiny.yaml" if tiny else "auxdet/auxdet_r50_fpn.yaml", device)
    cascade = build("auxdet/tiny/cascade_rpn_tiny.yaml" if tiny else "auxdet/cascade_rpn_r50_fpn.yaml", device)
    bafe = build("bafe/tiny/bafe_tiny.yaml" if tiny else "bafe/bafe_r50_fpn.yaml", device)
    fcos = build("bafe/tiny/fcos_tiny.yaml" if tiny else "bafe/fcos_r50_fpn.yaml", device)
    theirs = {"detectron2's FCOS": detectron2_fcos(device), "detectron2's Faster R-CNN": detectron2_faster_rcnn(device)}

    for name, model, baseline, baseline_name, bounds in (
        ("AuxDet", auxdet, cascade, "Cascade RPN without M2DM and LEEM", (1.25, 1.3)),
        ("BAFE-Net", bafe, fcos, "our FCOS", (None, None)),
    ):
        for kind, make, inputs, bound in (
            ("inference", inference, samples[:1], bounds[0]),
            ("training step of 2", training_step, samples, bounds[1]),
        ):
            bench.compare(
                f"{name} R50, {size}x{size}, {kind}",
                (name, make(model, inputs)),
                (baseline_name, make(baseline, inputs), bound),
                *((other, make(other_model, inputs), None) for other, other_model in theirs.items()),
                rounds=5,
            )
            bench.memory(f"{kind}, {size}x{size}", name, make(model, inputs))
    bench.compare(
        f"our FCOS R50, {size}x{size}, inference",
        ("our FCOS", inference(fcos, samples[:1])),
        ("detectron2's FCOS", inference(theirs["detectron2's FCOS"], samples[:1]), None),
    )
    run_small(bench)
    for name, model in (("AuxDet", auxdet), ("BAFE-Net", bafe)):
        bench.compare(
            f"{name} R50, {size}x{size}, inference, optimised",
            ("irstd_d2.inference.optimize", inference(optimize(model), samples[:1])),
            ("as built", inference(model, samples[:1]), None),
        )
        bench.compare(
            f"{name} R50, {size}x{size}, inference, settings",
            ("bfloat16, channels-last" + (", compiled" if device.type == "cuda" else ""), fast(model, samples[:1])),
            ("float32", inference(model, samples[:1]), 1 / 2.5 if device.type == "cuda" else None),
        )


def run_small(bench: Bench) -> None:
    """The recipes at native resolution, enlarged twice: what the whole image as context costs."""
    size, edge = ((64, 64), 64) if bench.quick else ((1024, 1280), 384)
    bafe, fcos = (build(f"bafe/tiny/{name}_fine.yaml", bench.device) for name in ("bafe", "fcos"))
    whole = [{"image": torch.rand(3, *size) * 255}]
    for kind, make, inputs in (
        (f"inference, {size[1]}x{size[0]}", inference, whole),
        (f"training step of 4, {edge}x{edge}", training_step, [sample_with_context(edge) for _ in range(4)]),
    ):
        bench.compare(
            f"BAFE-Net with context, R10, {kind}",
            ("BAFE-Net with context", make(bafe, inputs)),
            ("our FCOS", make(fcos, inputs), 1.3),
            rounds=9,
        )


def fast(model: nn.Module, samples: list) -> Callable[[], object]:
    """Inference with everything on that pays: on a GPU also compiled parts."""
    device = next(model.parameters()).device
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    if device.type == "cuda":
        model.backbone.compile()
    work = inference(model, samples)

    def run_in_bfloat16() -> object:
        with torch.autocast(device.type, torch.bfloat16):
            return work()

    return run_in_bfloat16

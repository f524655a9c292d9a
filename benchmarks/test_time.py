#!/usr/bin/env python3
"""What options of test time change: one training, evaluated under several sets of options.

    python benchmarks/test_time.py RUN --dataset densesirst_v2_val [--max-edge 320]
    python benchmarks/test_time.py RUN --row "TTA, flip" TEST.AUG.ENABLED True --row plain ...

RUN is the OUTPUT_DIR of a training of an FCOS or a BAFE-Net. Without --row the rows are the powers of the sky score,
test-time augmentation and, where the training averaged its weights, the weights without the average. A row's options
may change what is made of the predictions and which views are looked at, not the network; what the network predicts for
a view is computed once for all rows. Intervals are of the paired bootstrap over images, against the first row.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import detector_postprocess
from detectron2.structures import ImageList
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

import auxdet_d2  # noqa: F401  registers
from bafe_d2.modeling import BAFENet
from irstd_d2 import get_config
from irstd_d2.data import build_mapper
from irstd_d2.engine import IRSTDTrainer
from irstd_d2.evaluation.bootstrap import Comparison, compare_metric, resampled_metrics
from irstd_d2.evaluation.build import EVALUATOR_REGISTRY
from irstd_d2.evaluation.collection import DetectionCollector
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.inference import DetectorWithTTA
from irstd_d2.modeling.fcos import IRSTDFCOS, Predictions

METRICS = {
    "mAP07": "voc_paper/AP50_11point",
    "mAP12": "voc_paper/AP50_area",
    "AP": "bbox/AP",
    "AP50": "bbox/AP50",
    "recall50": "bbox/recall50",
    "Pd": "pd_fa/Pd",
    "Fa": "pd_fa/Fa",
    "best F1": "pd_fa/F1",
    "sky accuracy": "sky/pixel_accuracy",
    "sky IoU": "sky/IoU",
    "other IoU": "sky/IoU_other",
}
COMPARED = "voc_paper/AP50_area"

SCALES = "(0.75, 1.0, 1.25)"
TTA = ["TEST.AUG.ENABLED", "True", "TEST.AUG.SCALES"]
ROWS = {
    "plain": [],
    "sky score, power 0.5": ["MODEL.BAFE.SKY_SCORE_POWER", "0.5"],
    "sky score, power 1": ["MODEL.BAFE.SKY_SCORE_POWER", "1.0"],
    "sky score, power 2": ["MODEL.BAFE.SKY_SCORE_POWER", "2.0"],
    "TTA: flip": [*TTA, "(1.0,)"],
    "TTA: flip, suppression only": [*TTA, "(1.0,)", "TEST.AUG.MERGE", "nms"],
    "TTA: scales": [*TTA, SCALES, "TEST.AUG.FLIP", "False"],
    "TTA: flip, scales": [*TTA, SCALES],
    "TTA: flip, scales, suppression only": [*TTA, SCALES, "TEST.AUG.MERGE", "nms"],
}


class OncePerView(nn.Module):
    """A dense detector that predicts for each view of the present image once, whatever is made of it then.

    Args:
        model: its detections are computed anew each time.
        predicted: of the present image, shared by all rows of the same weights; the owner empties it.
    """

    def __init__(self, model: IRSTDFCOS, predicted: dict[Any, Any]):
        super().__init__()
        self.model, self.predicted = model, predicted
        self.pixels = 0  # of all views that were asked for

    def forward(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        results = []
        for sample in samples:
            images = self.model.preprocess_image([sample])
            self.pixels += images.tensor[0, 0].numel()
            key = _key(sample["image"])
            if key not in self.predicted:
                self.predicted[key] = self._predict(images, sample)
            predictions = self.predicted[key]
            found = self.model.forward_inference(images, [], predictions)
            if isinstance(self.model, BAFENet):
                results += self.model.postprocess(found, predictions, images, [sample])
            else:
                results.append({"instances": detector_postprocess(found[0], sample["height"], sample["width"])})
        return results

    def _predict(self, images: ImageList, sample: dict[str, Any]) -> Predictions:
        maps = self.model.backbone(images.tensor)
        features = [maps[name] for name in self.model.head_in_features]
        if not isinstance(self.model, BAFENet) or self.model.context is None:
            return self.model.head(features)
        context = self.model.context.batch([sample], images.tensor, images.image_sizes)
        sizes = torch.tensor(images.image_sizes, dtype=torch.float32)
        return self.model.predict_in_context(features, context, sizes)


def _key(image: Tensor) -> tuple[Any, ...]:
    return tuple(image.shape), hash(image.numpy().tobytes())


@dataclass
class Row:
    """One set of options under evaluation.

    Attributes:
        name: in the table.
        cfg: with its options.
        network: for counting pixels.
        model: what is called, ``network`` or test-time augmentation around it.
        evaluator: of ``TEST.EVALUATORS``.
        collector: for the intervals.
    """

    name: str
    cfg: CfgNode
    network: OncePerView
    model: nn.Module
    evaluator: DatasetEvaluators
    collector: DetectionCollector
    results: dict[str, Any] = field(default_factory=dict)


def build_row(name: str, cfg: CfgNode, weights: dict[str, Tensor], predicted: dict[Any, Any], dataset: str) -> Row:
    """Build the model of a row with given weights."""
    detector = IRSTDTrainer.build_model(cfg).eval()
    if not isinstance(detector, IRSTDFCOS):
        raise SystemExit(f"{cfg.MODEL.META_ARCHITECTURE} is neither FCOS nor BAFE-Net")
    detector.load_state_dict(weights)
    network = OncePerView(detector, predicted)
    model: nn.Module = network
    if cfg.TEST.AUG.ENABLED:
        model = DetectorWithTTA(cfg, network).eval()
    evaluator = DatasetEvaluators([EVALUATOR_REGISTRY.get(key)(cfg, dataset, None) for key in cfg.TEST.EVALUATORS])
    collector = DetectionCollector(GroundTruth.from_dataset(dataset), distributed=False)
    return Row(name, cfg, network, model, evaluator, collector)


def register_part(name: str, max_edge: int, count: int) -> str:
    """Register the images of a set with no edge above a length, evenly spread if there are more than ``count``."""
    dicts = [d for d in DatasetCatalog.get(name) if not max_edge or max(d["height"], d["width"]) <= max_edge]
    if count:
        dicts = dicts[:: -(-len(dicts) // count)]
    part = f"{name}, {len(dicts)} images"
    DatasetCatalog.register(part, lambda: dicts)
    MetadataCatalog.get(part).set(thing_classes=MetadataCatalog.get(name).thing_classes)
    return part


@torch.no_grad()
def evaluate(rows: list[Row], memories: list[dict[Any, Any]], dataset: str) -> None:
    """Run all rows over all images, image by image."""
    mapper = build_mapper(rows[0].cfg, is_train=False)
    for record in tqdm(DatasetCatalog.get(dataset), desc=dataset):
        sample = mapper(record)
        for memory in memories:
            memory.clear()
        for row in rows:
            outputs = row.model([sample])
            row.evaluator.process([sample], outputs)
            found = outputs[0]["instances"]
            row.collector.add(
                record["image_id"],
                found.pred_boxes.tensor.numpy(),
                found.scores.numpy(),
                found.pred_classes.numpy(),
            )
    for row in rows:
        row.results = row.evaluator.evaluate()


def compare(rows: list[Row], dataset: str) -> dict[str, Comparison]:
    """Compare every row with the first in ``COMPARED``, as fractions of one."""
    truth, metric = GroundTruth.from_dataset(dataset), resampled_metrics()[COMPARED]
    found = [row.collector.detections() for row in rows]
    first, *others = (
        metric.judge(detections, truth.targets, truth.pixels, len(truth.class_names))
        for detections in found
        if detections is not None  # only in processes that are not the main one
    )
    return {row.name: compare_metric(metric, first, judged) for row, judged in zip(rows[1:], others)}


def table(rows: list[Row], comparisons: dict[str, Comparison]) -> str:
    """Lay out the results as Markdown; cost is in pixels that the network sees."""
    lines = []
    for row in rows:
        metrics = {f"{e}/{m}": value for e, part in row.results.items() for m, value in part.items()}
        cells = [f"{metrics[key]:.1f}" if key in metrics else "" for key in METRICS.values()]
        difference = ""
        if row.name in comparisons:
            found = comparisons[row.name].difference
            difference = f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
        cost = row.network.pixels / rows[0].network.pixels
        lines.append([row.name, f"{cost:.1f}", *cells, difference])
    headers = ["", "cost", *METRICS, "mAP12 against the first row, 95 % interval"]
    return tabulate(lines, headers=headers, tablefmt="pipe", disable_numparse=True)


def parse_rows(arguments: list[list[str]] | None) -> dict[str, list[str]]:
    return {name: options for name, *options in arguments} if arguments else ROWS


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--weights", default="model_final.pth", help="file in RUN (%(default)s)")
    parser.add_argument("--dataset", default="densesirst_v2_val", help="validation set (%(default)s)")
    parser.add_argument("--max-edge", type=int, default=0, help="leave larger images out; 0: none")
    parser.add_argument("--count", type=int, default=0, help="images, evenly spread; 0: all")
    parser.add_argument("--row", nargs="+", action="append", metavar=("NAME", "KEY VALUE"), help="in place of the rows")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    checkpoint = torch.load(args.run / args.weights, map_location="cpu", weights_only=True)
    dataset = register_part(args.dataset, args.max_edge, args.count)
    memory: dict[Any, Any] = {}
    rows, memories = [], [memory]

    def add(name: str, options: list[str], weights: dict[str, Tensor], memory: dict[Any, Any]) -> None:
        cfg = get_config(args.run / "config.yaml", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *options])
        rows.append(build_row(name, cfg, weights, memory, dataset))

    for name, options in parse_rows(args.row).items():
        add(name, options, checkpoint["model"], memory)
    hooks = checkpoint.get("trainer", {}).get("hooks", {})
    if "EMAHook" in hooks:
        memories.append({})
        add("without the average of the weights (EMA)", [], hooks["EMAHook"]["trained"], memories[-1])
    evaluate(rows, memories, dataset)
    command = shlex.join(["python", "benchmarks/test_time.py", *(sys.argv[1:] if argv is None else argv)])
    print(f"\n`{command}`\n\n{date.today()}, one thread, {dataset}.\n\n{table(rows, compare(rows, dataset))}")


if __name__ == "__main__":
    main()

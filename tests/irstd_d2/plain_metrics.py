"""The metrics once more, one detection after the other: slow and plain, to hold the fast versions against.

``target_in`` and ``detection_in`` say which targets and detections belong to the part that is judged; all by default.
A target outside is treated as an ignored one, a detection outside is never a false alarm.
"""

from contextlib import contextmanager

import numpy as np

from irstd_d2.evaluation.matching import detection_table, target_table


@contextmanager
def labelled(label):
    """Say of which case an error is."""
    try:
        yield
    except Exception as error:
        error.add_note(label)
        raise


def random_case(seed, num_images=6, num_classes=2, max_targets=5, max_detections=9):
    """Boxes on a coarse grid, so that equal overlaps, equal scores and shared targets are frequent."""
    rng = np.random.default_rng(seed)
    targets, ignored, target_class, detections, scores, detection_class = [], [], [], [], [], []
    for _ in range(num_images):
        for store_boxes, count in (
            (targets, rng.integers(0, max_targets + 1)),
            (detections, rng.integers(0, max_detections + 1)),
        ):
            corner = rng.integers(0, 12, (count, 2))
            store_boxes.append(np.concatenate([corner, corner + rng.integers(1, 5, (count, 2))], 1).astype(float))
        ignored.append(rng.random(len(targets[-1])) < 0.2)
        target_class.append(rng.integers(0, num_classes, len(targets[-1])))
        scores.append(rng.integers(1, 6, len(detections[-1])) / 8)
        detection_class.append(rng.integers(0, num_classes, len(detections[-1])))
    return target_table(targets, target_class, ignored), detection_table(detections, scores, detection_class)


def everything(table):
    return [True] * len(table)


def comparable(detections, i, targets, j):
    return targets.image[j] == detections.image[i] and targets.category[j] == detections.category[i]


def plain_iou(a, b, one):
    w = min(a[2], b[2]) - max(a[0], b[0]) + one
    h = min(a[3], b[3]) - max(a[1], b[1]) + one
    inter = max(w, 0) * max(h, 0)
    area = [(c[2] - c[0] + one) * (c[3] - c[1] + one) for c in (a, b)]
    return inter / max(area[0] + area[1] - inter, 1e-6)


def plain_voc(detections, targets, threshold, one, target_in=None, detection_in=None):
    """Pascal VOC's rule: the best target, no second choice. Returns true and false, (D,) bool each."""
    target_in, detection_in = target_in or everything(targets), detection_in or everything(detections)
    taken, true, false = set(), [], []
    for i, box in enumerate(detections.boxes):
        best, best_iou = None, -1.0
        for ignore_pass in (False, True):
            for j in range(len(targets)):
                unjudged = bool(targets.ignored[j]) or not target_in[j]
                if not comparable(detections, i, targets, j) or unjudged != ignore_pass:
                    continue
                iou = plain_iou(box, targets.boxes[j], one)
                if iou > best_iou:
                    best, best_iou = j, iou
        hit = best is not None and best_iou >= threshold
        excused = hit and (targets.ignored[best] or not target_in[best])
        is_true = hit and not excused and best not in taken
        if is_true:
            taken.add(best)
        true.append(is_true)
        false.append(not is_true and not excused and detection_in[i])
    return np.array(true, bool), np.array(false, bool)


def plain_centre(detections, targets, max_distance, target_in=None, detection_in=None):
    """Greedy by score, nearest free target. Returns true and false, (D,) bool each."""
    target_in, detection_in = target_in or everything(targets), detection_in or everything(detections)
    free = {j for j in range(len(targets)) if not targets.ignored[j] and target_in[j]}
    unjudged = set(range(len(targets))) - free
    true, false = [], []
    for i in range(len(detections)):
        x1, y1, x2, y2 = detections.boxes[i].tolist()
        near = []
        for j in range(len(targets)):
            u1, v1, u2, v2 = targets.boxes[j].tolist()
            distance = (((x1 + x2 - u1 - u2) / 2) ** 2 + ((y1 + y2 - v1 - v2) / 2) ** 2) ** 0.5
            if comparable(detections, i, targets, j) and distance <= max_distance:
                near.append((distance, j))
        choice = min([pair for pair in near if pair[1] in free], default=None)
        if choice:
            free.discard(choice[1])
        true.append(bool(choice))
        false.append(not choice and not any(j in unjudged for _, j in near) and detection_in[i])
    return np.array(true, bool), np.array(false, bool)


def plain_pd_fa(detections, targets, threshold, max_distance, target_in=None, detection_in=None):
    """Found targets, false detections and their area, of detections with at least this score."""
    kept = detections.rows(detections.scores >= threshold)
    detection_in = detection_in and detection_in[: len(kept)]
    true, false = plain_centre(kept, targets, max_distance, target_in, detection_in)
    area = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in kept.boxes[false].tolist())
    return int(true.sum()), int(false.sum()), area


def plain_curve_ap(true, false, num_targets, mode):
    tp = fp = 0
    points = []
    for t, f in zip(true, false):
        tp, fp = tp + t, fp + f
        points.append((tp / num_targets, tp / max(tp + fp, 1)))
    if mode == "11points":
        return sum(max([p for r, p in points if r >= k], default=0.0) for k in np.arange(0, 1.001, 0.1)) / 11
    area = previous = 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - previous) * max(p for _, p in points[i:])
        previous = recall
    return area

"""The metrics of this example: average precision of vehicles and plates, exact match and character error rate.

A metric takes the pipeline's output (per frame a list of readings) and the data set's targets (per frame
`FrameTargets`). Metrics of parts of a data set can be merged by their states.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lpr.data import FrameTargets
from lpr.pipeline import Reading

MATCH_IOU = 0.5
CROP_WIDTH_PX = 160
Output = Sequence[Sequence[Reading]]
Boxes = NDArray[np.float64]
Part = TypeVar("Part")


def iou_matrix(a_N4: Boxes, b_M4: Boxes) -> NDArray[np.float64]:
    """Return the intersection over union of every pair, (N, M)."""
    low = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    high = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = ((c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a_N4, b_M4))
    return inner / np.maximum(area_a[:, None] + area_b[None, :] - inner, 1e-9)


def match(found_N4: Boxes, true_M4: Boxes) -> dict[int, int]:
    """Pair true with found boxes, best overlap first, at least `MATCH_IOU`; return indexes of found by true boxes."""
    overlap = iou_matrix(found_N4, true_M4)
    pairs = dict[int, int]()
    used = set[int]()
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        found, true = np.unravel_index(int(flat), overlap.shape)
        if overlap[found, true] < MATCH_IOU:
            break
        if int(true) not in pairs and int(found) not in used:
            pairs[int(true)] = int(found)
            used.add(int(found))
    return pairs


class _FrameMetric(ABC, Generic[Part]):
    """Stores one small part per frame, from which the scores are computed."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    @abstractmethod
    def _part(self, readings: Sequence[Reading], targets: FrameTargets) -> Part:
        """Return the part to store of one frame."""

    @abstractmethod
    def _quick(self, parts: Sequence[Part]) -> float | None:
        """Return the score of a few frames; None when it is undefined."""

    @abstractmethod
    def _total(self, parts: Sequence[Part]) -> float:
        """Return the score of all frames."""

    def update(self, output: Output, targets: Sequence[FrameTargets]) -> float | None:
        """Add one batch; return its score, None when nothing in it can be scored."""
        parts = self._split(output, targets)
        self._parts += parts
        return self._quick(parts)

    def sample_scores(self, output: Output, targets: Sequence[FrameTargets]) -> list[float | None]:
        """Return the score of each frame by itself, higher is better."""
        return [self._quick([part]) for part in self._split(output, targets)]

    def compute(self) -> float:
        """Return the score over all frames so far.

        Raises:
            ValueError: when none of them can be scored.
        """
        if not self._parts:
            raise ValueError("no frame was scored")
        return self._total(self._parts)

    def reset(self) -> None:
        """Remove all frames."""
        self._parts = []

    def state(self) -> list[Part]:
        """Return the picklable state for `merge` of another instance."""
        return list(self._parts)

    def merge(self, state: list[Part]) -> None:
        """Add the state of another instance."""
        self._parts += state

    def _split(self, output: Output, targets: Sequence[FrameTargets]) -> list[Part]:
        if len(output) != len(targets):
            raise ValueError(f"the pipeline returned {len(output)} results for {len(targets)} frames")
        return [self._part(readings, target) for readings, target in zip(output, targets, strict=True)]


@dataclass(slots=True)
class Detections:
    """The found boxes of one frame, best first, and the true ones; boxes are x0, y0, x1, y1."""

    found_N4: Boxes
    score_N: NDArray[np.float64]
    true_M4: Boxes
    ignore_M: NDArray[np.bool_]


class _AveragePrecision(_FrameMetric[Detections]):
    """AP at IoU 0.5. A batch's own score is the F1 of all its detections at IoU 0.5, which is cheap and similar."""

    what: ClassVar[str] = ""

    def _quick(self, parts: Sequence[Detections]) -> float | None:
        hits = misses = extra = 0
        for part in parts:
            pairs = match(part.found_N4, part.true_M4)
            counted = sum(not part.ignore_M[true] for true in pairs)
            hits += counted
            misses += int((~part.ignore_M).sum()) - counted
            extra += _unmatched(part, set(pairs.values()))
        total = 2 * hits + misses + extra
        return 2 * hits / total if total else None

    def _total(self, parts: Sequence[Detections]) -> float:
        if not any((~part.ignore_M).any() for part in parts):
            raise ValueError(f"the annotations have no {self.what} to find")
        return average_precision(parts)


def _unmatched(part: Detections, matched: set[int]) -> int:
    """Count the detections that match no true box and are not in an ignored box."""
    rest = [i for i in range(len(part.found_N4)) if i not in matched]
    if not rest or not part.ignore_M.any():
        return len(rest)
    boxes, ignored = part.found_N4[rest], part.true_M4[part.ignore_M]
    low = np.maximum(boxes[:, None, :2], ignored[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], ignored[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(-1).max(axis=1) / (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return int((inside < MATCH_IOU).sum())


def average_precision(parts: Sequence[Detections]) -> float:
    """Return the AP at IoU 0.5 by faster-coco-eval; ignored boxes are its `iscrowd`."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth, found = list[dict[str, Any]](), list[dict[str, Any]]()
    for image, part in enumerate(parts, start=1):
        for box, ignore in zip(_xywh(part.true_M4), part.ignore_M.tolist(), strict=True):
            common = {"image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3]}
            truth.append({**common, "id": len(truth) + 1, "iscrowd": int(ignore)})
        for box, score in zip(_xywh(part.found_N4), part.score_N.tolist(), strict=True):
            found.append({"image_id": image, "category_id": 1, "bbox": box, "score": score})
    if not found:
        return 0.0
    images = [{"id": i} for i in range(1, len(parts) + 1)]
    document = COCO({"images": images, "annotations": truth, "categories": [{"id": 1, "name": "box"}]})
    evaluation = COCOeval_faster(document, document.loadRes(found), iouType="bbox")
    evaluation.params.iouThrs = np.array([MATCH_IOU])
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[0, :, 0, 0, -1]
    return float(precision.mean())


def _xywh(boxes_N4: Boxes) -> list[list[float]]:
    return [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes_N4.tolist()]


class VehicleAP50(_AveragePrecision):
    """Average precision of vehicle boxes at IoU 0.5, by faster-coco-eval; a batch's own score is its F1."""

    what = "vehicle"

    def _part(self, readings: Sequence[Reading], targets: FrameTargets) -> Detections:
        boxes = np.array([r["vehicle_box"] for r in readings], dtype=np.float64).reshape(-1, 4)
        scores = np.array([r["vehicle_score"] for r in readings], dtype=np.float64)
        return Detections(boxes, scores, targets.vehicles_N4.astype(np.float64), targets.ignore_N)


class PlateAP50(_AveragePrecision):
    """Average precision of plate boxes at IoU 0.5, by faster-coco-eval; a batch's own score is its F1."""

    what = "plate"

    def __init__(self, min_width_px: float = 16.0) -> None:
        """Ignore plates narrower than `min_width_px`, and those of ignored vehicles."""
        super().__init__()
        self._min_width_px = min_width_px

    def _part(self, readings: Sequence[Reading], targets: FrameTargets) -> Detections:
        seen = [r for r in readings if r["plate_box"] is not None]
        boxes = np.array([r["plate_box"] for r in seen], dtype=np.float64).reshape(-1, 4)
        scores = np.array([r["plate_score"] for r in seen], dtype=np.float64)
        there = ~np.isnan(targets.plates_N4[:, 0])
        true = targets.plates_N4[there].astype(np.float64)
        narrow = true[:, 2] - true[:, 0] < self._min_width_px
        return Detections(boxes, scores, true, targets.ignore_N[there] | narrow)


@dataclass(slots=True)
class Spelling:
    """One readable plate: its true text, the read text (empty when it was not found), and its track."""

    true: str
    read: str
    track: int


def spellings(readings: Sequence[Reading], targets: FrameTargets) -> list[Spelling]:
    """Pair the readable plates of a frame with the texts read at their positions."""
    chosen = np.flatnonzero(targets.readable_N & ~np.isnan(targets.plates_N4[:, 0]))
    seen = [r for r in readings if r["plate_box"] is not None]
    found = np.array([r["plate_box"] for r in seen], dtype=np.float64).reshape(-1, 4)
    pairs = match(found, targets.plates_N4[chosen].astype(np.float64))
    return [
        Spelling(targets.texts[i], seen[pairs[n]]["text"] if n in pairs else "", int(targets.tracks_N[i]))
        for n, i in enumerate(chosen)
    ]


class _ReadingMetric(_FrameMetric[list[Spelling]]):
    """Scores all readable plates, also those that were not found."""

    @abstractmethod
    def _share(self, plate: Spelling) -> tuple[int, int]:
        """Return what one plate adds to numerator and denominator of the score."""

    def _score(self, plates: Sequence[Spelling]) -> float:
        numerators, denominators = zip(*map(self._share, plates), strict=True)
        return sum(numerators) / sum(denominators)

    def ci95(self) -> tuple[float, float] | None:
        """Return the 95 % interval by resampling vehicles, because readings of one vehicle are correlated."""
        from mlotel_cli.stats.bootstrap import grouped_bootstrap

        plates = [plate for part in self._parts for plate in part]
        shares = np.array([self._share(plate) for plate in plates], dtype=np.float64).reshape(-1, 2)
        return grouped_bootstrap(shares[:, 0], [plate.track for plate in plates], denominators=shares[:, 1])

    def _part(self, readings: Sequence[Reading], targets: FrameTargets) -> list[Spelling]:
        return spellings(readings, targets)

    def _quick(self, parts: Sequence[list[Spelling]]) -> float | None:
        plates = [plate for part in parts for plate in part]
        return self._score(plates) if plates else None

    def _total(self, parts: Sequence[list[Spelling]]) -> float:
        score = self._quick(parts)
        if score is None:
            raise ValueError("the annotations have no readable plate")
        return score


class PlateExactMatch(_ReadingMetric):
    """Share of readable plates that were read without a mistake, end to end: a missed plate counts as wrong."""

    def _share(self, plate: Spelling) -> tuple[int, int]:
        return int(plate.true == plate.read), 1

    def sample_image(self, data: Tensor, output: Output, targets: Sequence[FrameTargets], index: int) -> bytes:
        """Draw the first misread plate of frame `index`, or the whole frame, as a PNG 160 pixels wide.

        `data` are the batch's frames (B, 3, H, W), uint8.
        """
        target = targets[index]
        chosen = np.flatnonzero(target.readable_N & ~np.isnan(target.plates_N4[:, 0]))
        read = zip(chosen, spellings(output[index], target), strict=True)
        wrong = next((number for number, plate in read if plate.true != plate.read), None)
        height, width = data.shape[-2:]
        x0, y0, x1, y1 = (0, 0, width, height) if wrong is None else target.plates_N4[wrong].tolist()
        side = (x1 - x0) * 0.4
        left, top = max(int(x0 - side), 0), max(int(y0 - side), 0)
        right, bottom = min(int(x1 + side) + 1, width), min(int(y1 + side) + 1, height)
        crop = Image.fromarray(data[index, :, top:bottom, left:right].permute(1, 2, 0).cpu().numpy())
        small = crop.resize((CROP_WIDTH_PX, max(1, CROP_WIDTH_PX * crop.height // crop.width)))
        png = io.BytesIO()
        small.save(png, format="PNG")
        return png.getvalue()


class CharacterErrorRate(_ReadingMetric):
    """Edits per true character over all readable plates; lower is better, all characters of a missed plate count.

    Sample scores are 1 minus the rate, so that higher is better for them.
    """

    def _share(self, plate: Spelling) -> tuple[int, int]:
        return edits(plate.read, plate.true), len(plate.true)

    def sample_scores(self, output: Output, targets: Sequence[FrameTargets]) -> list[float | None]:
        """Return one minus the error rate of each frame."""
        return [None if rate is None else 1.0 - rate for rate in super().sample_scores(output, targets)]


class InCondition(Generic[Part]):
    """Another metric on the frames of one condition only, such as `night`."""

    def __init__(self, metric: _FrameMetric[Part], condition: str) -> None:
        """Apply `metric` to frames whose annotations have this `condition`."""
        self._metric = metric
        self._condition = condition

    def update(self, output: Output, targets: Sequence[FrameTargets]) -> float | None:
        """Add the batch's frames of the condition; return their score, None without such frames."""
        chosen = [(o, t) for o, t in zip(output, targets, strict=True) if t.condition == self._condition]
        return self._metric.update([o for o, _ in chosen], [t for _, t in chosen]) if chosen else None

    def compute(self) -> float:
        """Return the score over all frames of the condition.

        Raises:
            ValueError: when there are no such frames, or none of them can be scored.
        """
        try:
            return self._metric.compute()
        except ValueError as error:
            raise ValueError(f"condition {self._condition!r}: {error}") from error

    def reset(self) -> None:
        """Remove all frames."""
        self._metric.reset()

    def state(self) -> list[Part]:
        """Return the picklable state for `merge` of another instance."""
        return self._metric.state()

    def merge(self, state: list[Part]) -> None:
        """Add the state of another instance."""
        self._metric.merge(state)


def edits(a: str, b: str) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]

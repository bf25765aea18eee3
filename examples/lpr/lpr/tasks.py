"""The training task of each network: its loss on the training clips and its score on the selection clips.

Each network is trained alone on true boxes, which are cut with an error like that of predicted boxes.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpr.augment import cut_jittered, jitter_light, zoomed_frames
from lpr.boxes import iou
from lpr.losses import centre_targets, detection_loss
from lpr.models import (
    BLANK,
    PLATE_INPUT,
    PLATE_STRIDE,
    READER_INPUT,
    VEHICLE_INPUT,
    VEHICLE_STRIDE,
    peaks,
    read_greedily,
    vehicles_of,
)
from lpr.plates import ALPHABET
from lpr.training_data import CROP_PX, TrainingData

Loss = Callable[[nn.Module, np.random.Generator, int], Tensor]
Score = Callable[[nn.Module], float]


def vehicle_task(train: TrainingData, selection: TrainingData) -> tuple[Loss, Score]:
    """Return the loss on random frames, mirrored and zoomed, and the score: F1 at the best threshold."""
    rows, columns = (n // VEHICLE_STRIDE for n in VEHICLE_INPUT)

    def loss(network: nn.Module, rng: np.random.Generator, batch_size: int) -> Tensor:
        chosen = rng.integers(0, len(train.frames_N3HW), batch_size)
        images, boxes, ignored, frame = zoomed_frames(train, chosen, rng)
        output = network(jitter_light(images, rng).contiguous(memory_format=torch.channels_last))
        shape = (batch_size, rows, columns)
        heat, nearest = centre_targets(boxes[~ignored], frame[~ignored], shape=shape, stride=VEHICLE_STRIDE)
        weight = torch.ones(shape)
        for item, box in zip(
            frame[ignored].tolist(), (boxes[ignored] / VEHICLE_STRIDE).round().int().tolist(), strict=True
        ):
            weight[item, box[1] : box[3], box[0] : box[2]] = 0
        return detection_loss(output, heat, nearest, weight, stride=VEHICLE_STRIDE)

    def score(network: nn.Module) -> float:
        return best_threshold(*vehicle_hits(network, selection))[1]

    return loss, score


def vehicle_hits(network: nn.Module, data: TrainingData) -> tuple[list[float], list[bool], int]:
    """Return score and correctness (IoU 0.5) of each detection on `data`, and the number of vehicles."""
    scores, hits, total = list[float](), list[bool](), 0
    for start in range(0, len(data.frames_N3HW), 16):
        images = torch.from_numpy(data.frames_N3HW[start : start + 16]).float()
        found_score, found = vehicles_of(network(images))
        for item in range(len(images)):
            true = torch.from_numpy(data.vehicles[start + item])
            ignored = data.ignore[start + item]
            overlap = iou(found[item], true)
            used = set[int]()
            for rank in (found_score[item] > 0.02).nonzero()[:, 0].tolist():
                best = int(overlap[rank].argmax()) if len(true) else -1
                correct = best >= 0 and float(overlap[rank, best]) >= 0.5 and best not in used
                if correct:
                    used.add(best)
                    if ignored[best]:
                        continue
                scores.append(float(found_score[item, rank]))
                hits.append(correct)
            total += int((~ignored).sum())
    return scores, hits, total


def plate_task(train: TrainingData, selection: TrainingData) -> tuple[Loss, Score]:
    """Return the loss on random vehicles, cut with an error, and the score: F1 at the best threshold."""
    rows, columns = (n // PLATE_STRIDE for n in PLATE_INPUT)

    def loss(network: nn.Module, rng: np.random.Generator, batch_size: int) -> Tensor:
        chosen = rng.integers(0, len(train.crops_M3HW), batch_size)
        images = torch.from_numpy(train.crops_M3HW[chosen]).float()
        cuts, mapping = cut_jittered(images, rng, size=PLATE_INPUT, shift=0.06, zoom=0.12)
        boxes = plates_in_cut(torch.from_numpy(train.plates_M4[chosen]), mapping)
        mirrored = torch.from_numpy(rng.random(batch_size) < 0.5)
        cuts = torch.where(mirrored[:, None, None, None], cuts.flip(3), cuts)
        boxes = _mirror(boxes, mirrored)
        there = ~boxes[:, 0].isnan()
        shape = (batch_size, rows, columns)
        heat, nearest = centre_targets(boxes[there], there.nonzero()[:, 0], shape=shape, stride=PLATE_STRIDE)
        output = network(jitter_light(cuts, rng).contiguous(memory_format=torch.channels_last))
        return detection_loss(output, heat, nearest, torch.ones(shape), stride=PLATE_STRIDE)

    def score(network: nn.Module) -> float:
        return best_threshold(*plate_hits(network, selection))[1]

    return loss, score


def _mirror(boxes_N4: Tensor, mirrored_N: Tensor) -> Tensor:
    x0, y0, x1, y1 = boxes_N4.unbind(1)
    flipped = torch.stack([PLATE_INPUT[1] - x1, y0, PLATE_INPUT[1] - x0, y1], dim=1)
    return torch.where(mirrored_N[:, None], flipped, boxes_N4)


def plates_in_cut(plates_N4: Tensor, mapping_N4: Tensor) -> Tensor:
    """Convert plates from pixels of the stored crop to pixels of the cut; NaN where the centre is outside the cut."""
    place = plates_N4 / CROP_PX * 2 - 1
    scale, move = mapping_N4[:, :2].repeat(1, 2), mapping_N4[:, 2:].repeat(1, 2)
    boxes = ((place - move) / scale + 1) / 2 * torch.tensor([PLATE_INPUT[1], PLATE_INPUT[0]] * 2)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    outside = (centre < 0).any(1) | (centre >= PLATE_INPUT[0]).any(1)
    boxes[outside] = float("nan")
    return boxes


def plate_hits(network: nn.Module, data: TrainingData) -> tuple[list[float], list[bool], int]:
    """Return score and correctness (IoU 0.5) of the plate found in each true vehicle, and the number of plates."""
    still = np.random.default_rng(0)
    scores, hits, total = list[float](), list[bool](), 0
    for start in range(0, len(data.crops_M3HW), 64):
        images = torch.from_numpy(data.crops_M3HW[start : start + 64]).float()
        cuts, mapping = cut_jittered(images, still, size=PLATE_INPUT, shift=0.0, zoom=0.0)
        true = plates_in_cut(torch.from_numpy(data.plates_M4[start : start + 64]), mapping)
        score, found = peaks(network(cuts), count=1, stride=PLATE_STRIDE)
        overlap = iou(found, true[:, None])[:, 0, 0].nan_to_num(0.0)
        scores += score[:, 0].tolist()
        hits += (overlap >= 0.5).tolist()
        total += int((~true[:, 0].isnan()).sum())
    return scores, hits, total


def reader_task(train: TrainingData, selection: TrainingData) -> tuple[Loss, Score]:
    """Return the CTC loss on random plates, cut with an error, and the score: the share read without a mistake."""
    codes = [torch.tensor([ALPHABET.index(c) for c in text]) for text in train.texts]

    def loss(network: nn.Module, rng: np.random.Generator, batch_size: int) -> Tensor:
        chosen = rng.integers(0, len(codes), batch_size)
        images = torch.from_numpy(train.readings_P3HW[chosen]).float()
        cuts, _ = cut_jittered(images, rng, size=READER_INPUT, shift=0.05, zoom=0.10, turn=0.10)
        cuts = jitter_light(cuts, rng)
        if rng.random() < 0.3:
            cuts = F.avg_pool2d(F.pad(cuts, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        cuts = cuts + torch.from_numpy(rng.standard_normal(cuts.shape, dtype=np.float32)) * float(rng.uniform(0, 6))
        logits = network(cuts)
        targets = [codes[i] for i in chosen]
        lengths = torch.tensor([len(t) for t in targets])
        steps = torch.full((batch_size,), logits.shape[1])
        return F.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            torch.cat(targets),
            steps,
            lengths,
            blank=BLANK,
            zero_infinity=True,
        )

    def score(network: nn.Module) -> float:
        return sum(a == b for a, b in zip(read_all(network, selection), selection.texts, strict=True)) / len(
            selection.texts
        )

    return loss, score


def read_all(network: nn.Module, data: TrainingData) -> Iterator[str]:
    """Yield the text that the network reads on every plate of `data`, cut exactly."""
    still = np.random.default_rng(0)
    for start in range(0, len(data.texts), 64):
        images = torch.from_numpy(data.readings_P3HW[start : start + 64]).float()
        cuts, _ = cut_jittered(images, still, size=READER_INPUT, shift=0.0, zoom=0.0)
        yield from read_greedily(network(cuts))[0]


def best_threshold(scores: list[float], hits: list[bool], total: int) -> tuple[float, float]:
    """Return the score threshold with the best F1, and that F1."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    true = np.cumsum(np.asarray(hits)[order])
    f1 = 2 * true / (np.arange(1, len(order) + 1) + total)
    best = int(f1.argmax())
    return float(np.asarray(scores)[order][best]), float(f1[best])


def low_threshold(scores: list[float], hits: list[bool], *, precision: float) -> float:
    """Return the lowest threshold at which at least `precision` of the detections are right."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    kept = np.cumsum(np.asarray(hits)[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(kept >= precision)
    return float(np.asarray(scores)[order][enough[-1]]) if len(enough) else 0.5


TASKS: dict[str, Callable[[TrainingData, TrainingData], tuple[Loss, Score]]] = {
    "vehicle_detector": vehicle_task,
    "plate_detector": plate_task,
    "plate_reader": reader_task,
}

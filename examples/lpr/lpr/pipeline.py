"""The pipeline that mlotel evaluates: vehicle detector, plate detector, plate reader.

    frames -> Scene(vehicles) -> Scene(vehicles, plates) -> per frame a list of readings

Stages have no changing state, so each may run on a thread of its own. Data stay on the device up to the reader's texts.
The only function of mlotel in use is `record`, for the numbers of vehicles and plates.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from mlotel_cli.errors import DataError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lpr.boxes import crop, expand, iou, keep_best
from lpr.data import resolve
from lpr.models import (
    PLATE_INPUT,
    PLATE_STRIDE,
    READER_INPUT,
    VEHICLE_INPUT,
    PlateDetector,
    PlateReader,
    VehicleDetector,
    made_fast,
    peaks,
    read_greedily,
    vehicles_of,
)

VEHICLE_CONTEXT = 1.1
PLATE_CONTEXT = (1.12, 1.3)
NETWORKS: dict[str, type[nn.Module]] = {
    "vehicle_detector": VehicleDetector,
    "plate_detector": PlateDetector,
    "plate_reader": PlateReader,
}
OPERATING_POINT = "operating_point.json"


class Reading(TypedDict):
    """One vehicle of one frame; boxes are x0, y0, x1, y1 in pixels, `plate_box` is None when no plate was found."""

    vehicle_box: list[float]
    vehicle_score: float
    plate_box: list[float] | None
    plate_score: float
    text: str
    text_score: float


@dataclass(slots=True)
class Scene:
    """A batch of frames between two stages: K vehicles over all B frames, ordered by frame.

    Attributes:
        frames_BCHW: uint8, on the device.
        frame_K: the frame of each vehicle.
        vehicles_K4, vehicle_score_K: boxes in pixels and scores.
        plates_K4, plate_score_K: the plate of each vehicle; a score of 0 where there is none.
    """

    frames_BCHW: Tensor
    frame_K: Tensor
    vehicles_K4: Tensor
    vehicle_score_K: Tensor
    plates_K4: Tensor | None = None
    plate_score_K: Tensor | None = None


def load_network(name: str, folder: Path) -> nn.Module:
    """Load one of `NETWORKS` from `folder`, in evaluation mode.

    Raises:
        DataError: when the weights are missing or belong to another network.
    """
    path = folder / f"{name}.safetensors"
    network = NETWORKS[name]()
    try:
        state = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot read weights {path}: {error}. Set pipeline.weights, or train with: python -m lpr.train"
        ) from error
    expected = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    wrong = sorted(set(expected) ^ set(state)) or [k for k in expected if expected[k].shape != state[k].shape]
    if wrong:
        raise DataError(f"{path} does not fit {name}: {len(wrong)} tensors differ, the first is {wrong[0]}")
    network.load_state_dict({key: value.to(expected[key].dtype) for key, value in state.items()}, strict=False)
    return network.eval()


def load_operating_point(folder: Path) -> dict[str, float]:
    """Load the thresholds that the training chose on the selection set.

    Raises:
        DataError: when the file cannot be read.
    """
    path = folder / OPERATING_POINT
    try:
        point = json.loads(path.read_text(encoding="utf-8"))
        return {key: float(point[key]) for key in ("vehicle_threshold", "plate_threshold")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read thresholds {path}: {error}. Train with: python -m lpr.train") from error


class LicencePlatePipeline:
    """Reads plates from frames.

    Attributes:
        stages: the three stages in order, plain callables.
        modules: the network of each stage, looked up at every call, so that an option can replace it.
    """

    stages: Mapping[str, Callable[[Any], Any]]
    modules: dict[str, nn.Module]

    def __init__(
        self,
        weights: str = "weights",
        *,
        device: str = "cpu",
        vehicle_threshold: float | None = None,
        plate_threshold: float | None = None,
    ) -> None:
        """Load the networks.

        Args:
            weights: folder of the weights; a relative path is searched in the current folder, then in the example's.
            device: torch device of the networks.
            vehicle_threshold, plate_threshold: lower scores are dropped; None takes the thresholds of the training.
        """
        folder = resolve(weights)
        point = load_operating_point(folder) if None in (vehicle_threshold, plate_threshold) else {}
        self._device = torch.device(device)
        self._vehicle_threshold = point["vehicle_threshold"] if vehicle_threshold is None else vehicle_threshold
        self._plate_threshold = point["plate_threshold"] if plate_threshold is None else plate_threshold
        self.modules = {name: made_fast(load_network(name, folder)).to(self._device) for name in NETWORKS}
        self.stages = {
            "vehicle_detector": self.detect_vehicles,
            "plate_detector": self.detect_plates,
            "plate_reader": self.read_plates,
        }

    @torch.inference_mode()
    def detect_vehicles(self, frames_BCHW: Tensor) -> Scene:
        """Find vehicles in uint8 frames (B, 3, H, W) of any size."""
        from mlotel_cli import record

        frames = frames_BCHW.to(self._device)
        height, width = frames.shape[-2:]
        small = shrink(frames)
        score_BK, boxes_BK4 = vehicles_of(self.modules["vehicle_detector"](small))
        frame_K, place_K = (score_BK >= self._vehicle_threshold).nonzero(as_tuple=True)
        scale = boxes_BK4.new_tensor([width / VEHICLE_INPUT[1], height / VEHICLE_INPUT[0]] * 2)
        limit = boxes_BK4.new_tensor([width, height] * 2)
        boxes_K4 = torch.minimum((boxes_BK4[frame_K, place_K] * scale).clamp(min=0), limit)
        record("num_vehicles", len(frame_K))
        return Scene(frames, frame_K, boxes_K4, score_BK[frame_K, place_K])

    @torch.inference_mode()
    def detect_plates(self, scene: Scene) -> Scene:
        """Find at most one plate in each vehicle; of two plates at the same place the better one stays."""
        from mlotel_cli import record

        if not len(scene.frame_K):
            record("num_plates", 0)
            return replace(scene, plates_K4=scene.vehicles_K4, plate_score_K=scene.vehicle_score_K)
        area_K4 = expand(scene.vehicles_K4, width=VEHICLE_CONTEXT, height=VEHICLE_CONTEXT)
        crops = crop(scene.frames_BCHW, area_K4, scene.frame_K, size=PLATE_INPUT)
        score_K1, boxes_K14 = peaks(self.modules["plate_detector"](crops), count=1, stride=PLATE_STRIDE)
        plates_K4 = from_crop(boxes_K14[:, 0], area_K4)
        score_K = torch.where(score_K1[:, 0] >= self._plate_threshold, score_K1[:, 0], 0.0)
        order = score_K.argsort(descending=True, stable=True)
        sorted_K4, frame_K = plates_K4[order], scene.frame_K[order]
        same = (iou(sorted_K4, sorted_K4) > 0.4) & (frame_K[:, None] == frame_K[None, :])
        score_K[order[~keep_best(same)]] = 0.0
        record("num_plates", int((score_K > 0).sum()))
        return replace(scene, plates_K4=plates_K4, plate_score_K=score_K)

    @torch.inference_mode()
    def read_plates(self, scene: Scene) -> list[list[Reading]]:
        """Read every plate; return plain Python, one list per frame. Synchronises the GPU."""
        assert scene.plates_K4 is not None
        assert scene.plate_score_K is not None
        found_K = scene.plate_score_K > 0
        plates = scene.plates_K4[found_K]
        texts, chances = list[str](), list[float]()
        if len(plates):
            area = expand(plates, width=PLATE_CONTEXT[0], height=PLATE_CONTEXT[1])
            crops = crop(scene.frames_BCHW, area, scene.frame_K[found_K], size=READER_INPUT)
            texts, chances = read_greedily(self.modules["plate_reader"](crops))
        return _readings(scene, found_K.tolist(), texts, chances)


def shrink(frames_BCHW: Tensor) -> Tensor:
    """Resize frames of any size to `VEHICLE_INPUT`, 0..255; at exactly half the size each pixel is the mean of four.

    On the CPU the frames stay uint8, which torch resizes a dozen times faster than floats. CUDA has no such kernel.
    """
    frames = frames_BCHW if frames_BCHW.device.type == "cpu" else frames_BCHW.float()
    halved = frames.shape[-2:] == (2 * VEHICLE_INPUT[0], 2 * VEHICLE_INPUT[1])
    return F.interpolate(frames, size=VEHICLE_INPUT, mode="bilinear", antialias=not halved)


def from_crop(boxes_K4: Tensor, area_K4: Tensor) -> Tensor:
    """Convert boxes from pixels of a `PLATE_INPUT` crop to pixels of the frame that `area_K4` was cut from."""
    origin = area_K4[:, :2]
    scale = (area_K4[:, 2:] - origin) / area_K4.new_tensor([PLATE_INPUT[1], PLATE_INPUT[0]])
    return boxes_K4 * scale.repeat(1, 2) + origin.repeat(1, 2)


def _readings(scene: Scene, found: list[bool], texts: list[str], chances: list[float]) -> list[list[Reading]]:
    assert scene.plates_K4 is not None
    assert scene.plate_score_K is not None
    results: list[list[Reading]] = [[] for _ in range(len(scene.frames_BCHW))]
    read = iter(zip(texts, chances, strict=True))
    rows = zip(
        scene.frame_K.tolist(), scene.vehicles_K4.tolist(), scene.vehicle_score_K.tolist(),
        scene.plates_K4.tolist(), scene.plate_score_K.tolist(), found, strict=True,
    )  # fmt: skip
    for frame, vehicle, vehicle_score, plate, plate_score, has_plate in rows:
        text, chance = next(read) if has_plate else ("", 0.0)
        results[frame].append(
            Reading(
                vehicle_box=[round(v, 1) for v in vehicle],
                vehicle_score=round(vehicle_score, 4),
                plate_box=[round(v, 1) for v in plate] if has_plate else None,
                plate_score=round(plate_score, 4),
                text=text,
                text_score=round(chance, 4),
            )
        )
    return results

"""Trains the three networks on rendered video and writes weights/: `python -m lpr.train` in examples/lpr.

The selection set determines which of the last checkpoints is kept, and the thresholds; the validation set is not used.
The networks are trained in parallel, each on one thread, so that the result does not depend on the number of cores.
"""

import argparse
import json
import multiprocessing
import pickle
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from lpr.pipeline import NETWORKS, OPERATING_POINT, load_network
from lpr.tasks import TASKS, Loss, Score, best_threshold, low_threshold, plate_hits, vehicle_hits
from lpr.training_data import TrainingData, collect

SEED = 7
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
MIN_PRECISION = 0.92
CHECKPOINTS = 10


@dataclass(frozen=True, slots=True)
class Recipe:
    """The training settings of one network."""

    steps: int
    batch_size: int
    learning_rate: float


# The longest first: two processes share them.
RECIPES = {
    "plate_reader": Recipe(steps=3500, batch_size=64, learning_rate=2e-3),
    "vehicle_detector": Recipe(steps=2000, batch_size=16, learning_rate=3e-3),
    "plate_detector": Recipe(steps=1300, batch_size=48, learning_rate=3e-3),
}


def fit(name: str, loss: Loss, score: Score, *, share: float = 1.0) -> nn.Module:
    """Train one network; return the one of the last checkpoints with the best `score` on the selection set.

    Args:
        name: key of `RECIPES`.
        loss: loss of a random batch.
        score: score on the selection set, higher is better.
        share: share of the recipe's steps to train.
    """
    recipe = RECIPES[name]
    steps = max(CHECKPOINTS, round(recipe.steps * share))
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    network = NETWORKS[name]().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.1)
    best, best_state = -1.0, network.state_dict()
    started, running, interval = time.process_time(), 0.0, steps // CHECKPOINTS
    for step in range(1, steps + 1):
        network.train()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(network, rng, recipe.batch_size)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        running += float(value.detach())
        if step % interval == 0:
            now = _evaluate(network, score) if step > 0.65 * steps else None
            if now is not None and now >= best:
                best, best_state = now, {k: v.clone() for k, v in network.state_dict().items()}
            took = time.process_time() - started
            chosen = "" if now is None else f", selection {now:.4f}"
            report(f"{name}: step {step}/{steps}, loss {running / interval:.4f}{chosen}, {took:.0f} s of CPU time")
            running = 0.0
    network.load_state_dict(best_state)
    return network.eval()


def _evaluate(network: nn.Module, score: Score) -> float:
    network.eval()
    with torch.inference_mode():
        return score(network)


def report(line: str) -> None:
    """Print one line of progress."""
    print(line, flush=True)


def train_one(name: str, data: Path, folder: Path, share: float) -> None:
    """Train one network from stored data and write its weights; it runs in a process of its own."""
    torch.set_num_threads(1)
    with data.open("rb") as file:
        train, selection = pickle.load(file)
    loss, score = TASKS[name](train, selection)
    save(name, fit(name, loss, score, share=share), folder)


def save(name: str, network: nn.Module, folder: Path) -> None:
    """Write weights in half precision; vectors (normalisation) keep full precision."""
    state = {
        key: (value.half() if value.dim() > 1 else value).contiguous()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    save_file(state, str(folder / f"{name}.safetensors"), metadata={"seed": str(SEED)})


def needed_by(name: str, data: TrainingData) -> TrainingData:
    """Return the part of `data` that one network needs; the rest is empty."""
    if name != "vehicle_detector":
        data = replace(data, frames_N3HW=data.frames_N3HW[:0], vehicles=[], ignore=[])
    if name != "plate_detector":
        data = replace(data, crops_M3HW=data.crops_M3HW[:0], plates_M4=data.plates_M4[:0])
    if name != "plate_reader":
        data = replace(data, readings_P3HW=data.readings_P3HW[:0], texts=[])
    return data


def train_all(train: TrainingData, selection: TrainingData, *, folder: Path, workers: int, share: float) -> None:
    """Train the three networks in `workers` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = list[tuple[str, Path, Path, float]]()
        for name in RECIPES:
            path = Path(scratch) / f"{name}.pickle"
            with path.open("wb") as file:
                pickle.dump((needed_by(name, train), needed_by(name, selection)), file, protocol=4)
            jobs.append((name, path, folder, share))
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            pool.starmap(train_one, jobs, chunksize=1)


def choose_thresholds(selection: TrainingData, folder: Path) -> None:
    """Choose and write the lowest thresholds with a precision of `MIN_PRECISION` on the selection set."""
    with torch.inference_mode():
        vehicles = vehicle_hits(load_network("vehicle_detector", folder), selection)
        plates = plate_hits(load_network("plate_detector", folder), selection)
    point = {
        "vehicle_threshold": round(low_threshold(*vehicles[:2], precision=MIN_PRECISION), 4),
        "plate_threshold": round(low_threshold(*plates[:2], precision=MIN_PRECISION), 4),
        "selection": {
            "vehicle_f1": round(best_threshold(*vehicles)[1], 4),
            "plate_f1": round(best_threshold(*plates)[1], 4),
        },
    }
    (folder / OPERATING_POINT).write_text(json.dumps(point, indent=2) + "\n")
    report(str(point))


def main(arguments: list[str]) -> None:
    """Render the data, train the networks, choose the thresholds, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder to write to")
    parser.add_argument("--share", type=float, default=1.0, help="share of clips and steps, for a quick try")
    parser.add_argument("--workers", type=int, default=2, help="processes; the result does not depend on it")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    train = collect("train", workers=options.workers, share=options.share)
    selection = collect("selection", workers=options.workers, share=max(options.share, 0.2))
    counts = f"{len(train.frames_N3HW)} frames, {len(train.crops_M3HW)} vehicles, {len(train.texts)} plates"
    report(f"{counts} to learn from, {time.perf_counter() - started:.0f} s")
    train_all(train, selection, folder=options.weights, workers=options.workers, share=options.share)
    choose_thresholds(selection, options.weights)
    report(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])

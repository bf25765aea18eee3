"""Where batches come from: a data set (`dataset`), a video (`video`), and the queue before a pipeline."""

from mlotel_cli.sources.dataset import Batches, Endless
from mlotel_cli.sources.intake import Arrival, Health, Intake

__all__ = ["Arrival", "Batches", "Endless", "Health", "Intake"]

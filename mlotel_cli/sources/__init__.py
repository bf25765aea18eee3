"""The sources of batches: a data set (`dataset`), a video (`video`), and the queue for live input (`intake`)."""

from mlotel_cli.sources.dataset import Batches, Endless
from mlotel_cli.sources.intake import Arrival, Health, Intake

__all__ = ["Arrival", "Batches", "Endless", "Health", "Intake"]

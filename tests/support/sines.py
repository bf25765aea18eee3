"""The dummy's models with periods and speeds of their own, for tests of what a pipeline's throughput depends on."""

from mlotel_cli.dummy import SineModel


class Sines:
    """Stages model_1, model_2, ...; each takes 50 +- 25 ms times its scale, on a sine of its period in batches."""

    def __init__(self, *, periods: list[int], scales: list[float]) -> None:
        models = [SineModel(period, time_scale=scale) for period, scale in zip(periods, scales, strict=True)]
        self.stages = {f"model_{n}": model for n, model in enumerate(models, start=1)}


class Silent:
    """A metric that has nothing to say."""

    def update(self, output: object, targets: object) -> None:
        """No score."""

    def compute(self) -> float:
        return 0.0

"""Load of processor, memory, disk, network and graphics card while a run lasts. Imports MLflow: import on use."""

# mypy: allow-untyped-calls

from collections.abc import Callable, Mapping

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

JOIN_SECONDS = 0.5


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's monitor with three differences.

    A run shorter than the interval gets a sample too, the last one; samples go where all metrics of the run go,
    so that a lost service is met in one place; and the end of a run waits at most half a second for it.
    """

    def __init__(self, run_id: str, tracking_uri: str, record: Callable[[Mapping[str, float], int], None]) -> None:
        super().__init__(run_id, tracking_uri=tracking_uri)
        self._record = record

    def start(self) -> None:
        """Starts sampling in a thread."""
        super().start()

    def monitor(self) -> None:
        """Samples until `finish`, and once more then."""
        # The first reading of the processor has nothing to compare with.
        self.collect_metrics()
        for monitor in self.monitors:
            monitor.clear_metrics()
        stopping = False
        while not stopping:
            stopping = self._shutdown_event.wait(self.sampling_interval)
            self.collect_metrics()
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Hands one sample over."""
        self._record({self._metrics_prefix + name: value for name, value in metrics.items()}, self._logging_step)
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()

    def finish(self) -> None:
        """Takes the last sample and stops."""
        self._shutdown_event.set()
        if self._process is not None:
            self._process.join(JOIN_SECONDS)

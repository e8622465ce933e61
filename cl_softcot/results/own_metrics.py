"""Metrics of an experiment's own (``metrics/own.py``) in the records of runs, finished ones too."""

from __future__ import annotations

from collections.abc import Sequence

from cl_softcot.metrics.own import OwnMetric
from cl_softcot.results.record import MetricMeaning, RunRecord


def with_metrics(record: RunRecord, metrics: Sequence[OwnMetric]) -> RunRecord:
    """The record with those of the metrics that it lacks: a finished run needs not be run again for another number.

    Raises:
        UserError: if one of them cannot be computed.
    """
    new = [metric for metric in metrics if metric.name not in record.summary]
    if not new:
        return record
    says = ("formula", "source", "unit", "direction")
    meanings = {m.name: MetricMeaning(**{key: getattr(m.meaning, key) for key in says}, function=m.path) for m in new}
    return record.with_summary({metric.name: metric.value(record) for metric in new}, meanings)

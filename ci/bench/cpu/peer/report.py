"""Prints the rows of a run and appends them as JSON lines."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ci.bench.cpu.peer.limits import UNITS, Ceiling, Key, Row, Shape, limit_of, met, rows
from ci.bench.machine import append


class Report:
    """`found`: values of one or more rounds; `machine`: the ceilings of these, of which the median
    is taken."""

    def __init__(
        self,
        config: Mapping[str, Any],
        lengths: tuple[int, int],
        found: Mapping[Key, Sequence[float]],
        machine: Mapping[str, Sequence[float]],
        ours: str = "inferplane",
    ) -> None:
        self.shape, self.lengths = Shape.of(config), lengths
        self.ceiling = Ceiling(**{k: statistics.median(v) for k, v in machine.items()})
        self.spread = machine
        self.rows, self.ours = rows(found, ours), ours

    def append(self, about: Mapping[str, Any], path: Path) -> None:
        """A line of JSON for each row; `about` is part of it."""
        for row in self.rows:
            append(path, self.record(row, about))

    def show(self) -> None:
        for name, values in self.spread.items():
            told = " ".join(f"{value / 1e9:.1f}" for value in values)
            print(f"{name}: {getattr(self.ceiling, name) / 1e9:.1f} G/s (rounds: {told})")
        print(
            f"\n{'case':18}{'engine':24}{'median':>9} {'unit':6}{'ratio':>7}{'of limit':>9}  rounds"
        )
        for row in self.rows:
            self.print(row)

    def limit(self, row: Row) -> float | None:
        precision, case, _, _ = row.key
        return limit_of(case, self.shape, self.ceiling, precision, *self.lengths)

    def print(self, row: Row) -> None:
        precision, case, engine, variant = row.key
        limit = self.limit(row)
        of = "" if limit is None else f"{row.value / limit:.0%}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        unit = UNITS[case.partition("/")[0]]
        told = " ".join(f"{value:.4g}" for value in row.values)
        goal = ""
        if engine == self.ours:
            reached = met(row, limit)
            goal = {None: "", True: "  goal met", False: "  goal missed"}[reached]
        print(
            f"{precision + ' ' + case:18}{engine + ' ' + variant:24}{row.value:>9.4g} {unit:6}"
            f"{ratio:>7}{of:>9}  {told}{goal}"
        )

    def record(self, row: Row, about: Mapping[str, Any]) -> dict[str, Any]:
        """`peer` is null for our own rows; their ratio is against the best peer, a peer's ratio is
        our best variant against it."""
        precision, case, engine, variant = row.key
        limit = self.limit(row)
        return {
            "benchmark": "peers",
            "case": f"{precision}/{case}",
            "peer": None if engine == self.ours else engine,
            "variant": variant,
            "value": round(row.value, 3),
            "unit": UNITS[case.partition("/")[0]],
            "limit": None if limit is None else round(limit, 3),
            "ratio": None if row.ratio is None else round(row.ratio, 3),
            "ceilings": {name: round(getattr(self.ceiling, name) / 1e9, 1) for name in self.spread},
            **about,
        }

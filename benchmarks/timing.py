"""Timing that survives a noisy machine: alternate, take medians, give ratios.

Rivals take turns, so that whatever else the machine does hits all of them.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax


def medians(
  rivals: dict[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
  """Median seconds of each; every one runs once beforehand, uncounted."""
  seconds = {name: [] for name in rivals}
  for i in range(repeats + 1):
    for name, run in rivals.items():
      began = time.perf_counter()
      jax.block_until_ready(run())
      if i:
        seconds[name].append(time.perf_counter() - began)
  return {name: statistics.median(each) for name, each in seconds.items()}


def print_table(rows: list[dict[str, object]]) -> None:
  """Prints records that have the same fields."""
  cells = [list(rows[0])] + [
    [f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values()]
    for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  for line in cells:
    print('  '.join(c.rjust(w) for c, w in zip(line, widths, strict=True)))


def report(rows: list[dict[str, object]], out: str) -> None:
  """Prints the table, and writes it as JSON to `out` if that is given."""
  print_table(rows)
  if out:
    Path(out).write_text(json.dumps(rows, indent=2) + '\n')
    print(f'written to {out}')

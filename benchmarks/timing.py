"""Timing that survives a noisy machine: alternate, take medians, give ratios.

Rivals take turns, so that whatever else the machine does hits all of them.
"""

import json
import logging
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

from longctx_jax.progress import Progress


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


def measure_all(
  measure: Callable[..., dict[str, object]], cases: Iterable[tuple]
) -> list[dict[str, object]]:
  """measure(*case) of each case, saying how many are done."""
  logging.basicConfig(format='%(message)s')
  logging.getLogger('longctx_jax.progress').setLevel(logging.INFO)
  cases, rows = list(cases), []
  with Progress('measured', len(cases)) as progress:
    for case in cases:
      rows.append(measure(*case))
      progress.update(len(rows))
  return rows


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

"""One self-contained HTML page about a run, for looking rather than reading.

Everything on it is in the run's directory and its config; nothing is loaded
from outside and no script runs, so that the file can be mailed, printed and
kept.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import markupsafe

from longctx_jax import figures
from longctx_jax.config import StageConfig
from longctx_jax.data_config import ConversationRows, RetrievalRows
from longctx_jax.html_page import commas, percent, write_page
from longctx_jax.metrics import read_metrics
from longctx_jax.settings_table import ABSENT, compare_settings
from longctx_jax.workdir import stage_directory

Grid = Mapping[str, Mapping[str, float]]


class StageRun(NamedTuple):
  """A finished stage: its config, its results.json and its metrics.jsonl."""

  config: StageConfig
  results: dict[str, Any]
  metrics: list[dict[str, float]]


class Cell(NamedTuple):
  """A share as it is shown, with the colours of its cell."""

  text: str
  background: str
  ink: str


class Heatmap(NamedTuple):
  """A needle grid: lengths ascending, one row of cells a depth."""

  stage: str
  row_len: int  # tokens of the stage's training rows
  lengths: list[int]
  num_inside: int  # lengths up to row_len come first: how many they are
  num_short: int  # lengths up to the shortest rows of any stage
  rows: list[tuple[str, list[Cell]]]
  mean: float
  mean_beyond: float | None  # None: no length lies beyond row_len


def write_report(stages: tuple[StageConfig, ...], workdir: Path) -> Path:
  """Writes workdir/report.html about finished stages; returns its path.

  Raises:
    FileNotFoundError: a stage has no results.json, or there is no
      summary.json.
  """
  runs = [_read_stage(i, stage, workdir) for i, stage in enumerate(stages)]
  summary = json.loads((workdir / 'summary.json').read_text())
  filters = {'duration': duration, 'short_len': short_length, 'cell': cell}
  path = workdir / 'report.html'
  write_page(path, _page(runs, summary), filters)
  return path


def _read_stage(i, stage, workdir):
  directory = stage_directory(workdir, i, stage.name)
  results = json.loads((directory / 'results.json').read_text())
  return StageRun(stage, results, read_metrics(directory / 'metrics.jsonl'))


def _page(runs, summary):
  """What the template shows."""
  stages = [run.config for run in runs]
  grids = [run.results['evals']['needle'] for run in runs]
  short = min(stage.data.seq_len for stage in stages)
  differing, same = compare_settings(stages)
  return {
    'runs': runs,
    'summary': summary,
    'sources': list(dict.fromkeys(stage.source for stage in stages)),
    'needle_means': [grid_mean(grid['single']) for grid in grids],
    'heatmaps': {
      kind: [
        heatmap(config, grid[kind], short)
        for config, grid in _heatmap_grids(runs)
      ]
      for kind in ('single', 'multi')
    },
    'beyond': beyond_notes(stages, grids[-1]['single']),
    'short': short,
    'stage_colour': figures.stage_colour,
    'scale': [x / 10 for x in range(11)],
    'wording': needle_wording(stages),
    'curves': _curves(runs),
    'positions': _positions(runs),
    'tables': table_sections(runs),
    'differing': differing,
    'same': same,
  }


def _heatmap_grids(runs):
  """(config, grids) of each heatmap: after a stage, and on a new RoPE alone.

  The latter only where there is something to find.
  """
  for before, run in zip([None, *runs], runs, strict=False):
    untrained = run.results['needle_untrained']
    if untrained and grid_mean(untrained['single']) > 0:
      # What these weights were trained on so far.
      name = f'{before.config.name} + RoPE of {run.config.name}'
      yield dataclasses.replace(before.config, name=name), untrained
    yield run.config, run.results['evals']['needle']


# Numbers as text -------------------------------------------------------------


def short_length(tokens: int) -> str:
  """A row length for a column head: 131072 -> '128K', 384 -> '384'."""
  return f'{tokens // 1024}K' if tokens % 1024 == 0 else f'{tokens}'


def duration(seconds: float) -> str:
  """Wall time: '41 s', '12 min 05 s', '3 h 07 min'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes:02} min'
  return f'{minutes} min {rest:02} s' if minutes else f'{rest} s'


def cell(share: float | None) -> Cell:
  """How a share is shown in a shaded table; None has not been measured."""
  if share is None or math.isnan(share):
    return Cell(ABSENT, '#ffffff', figures.DARK_INK)
  return Cell(percent(share), *figures.shade(share))


# The needle ------------------------------------------------------------------


def grid_mean(grid: Grid) -> float:
  """Share of exact answers over all lengths and depths; nan if there are none.

  Every cell counts the same.
  """
  shares = [share for cells in grid.values() for share in cells.values()]
  return statistics.fmean(shares) if shares else math.nan


def heatmap(stage: StageConfig, grid: Grid, short: int) -> Heatmap:
  """A needle grid ready to be shown; `short` is the short stages' row length.

  Lengths and depths are sorted as numbers.
  """
  lengths = sorted(map(int, grid))
  row_len = stage.data.seq_len
  depths = sorted({d for cells in grid.values() for d in cells}, key=float)
  beyond = {n: grid[n] for n in grid if int(n) > row_len}
  return Heatmap(
    stage=stage.name,
    row_len=row_len,
    lengths=lengths,
    num_inside=sum(n <= row_len for n in lengths),
    num_short=sum(n <= short for n in lengths),
    rows=[
      (percent(float(d)), [cell(grid[str(n)].get(d)) for n in lengths])
      for d in depths
    ],
    mean=grid_mean(grid),
    mean_beyond=grid_mean(beyond) if beyond else None,
  )


def beyond_notes(stages: Sequence[StageConfig], grid: Grid) -> list[str]:
  """Which lengths of the grid are longer than the rows of each stage."""
  lengths = sorted(map(int, grid))
  notes = []
  for stage in stages:
    beyond = [n for n in lengths if n > stage.data.seq_len]
    if beyond:
      found = (
        f'{len(beyond)} of {len(lengths)}, from {commas(beyond[0])} tokens'
      )
    else:
      found = 'none'
    notes.append(f'{stage.name} {found}')
  return notes


def needle_wording(stages: Sequence[StageConfig]) -> str:
  """Whether training shows the wording that the needle test asks in."""
  using = [stage for stage in stages if _reads_stored_needles(stage)]
  makers = [stage for stage in stages if _longest_made_needle(stage)]
  if makers:
    longest = max(map(_longest_made_needle, makers))
    made = (
      f"The needle's wording is in the rows of {_with_row_lens(makers)}, in"
      f' texts of up to {commas(longest)} tokens that are made when they are'
      ' read'
    )
    using = [stage for stage in using if stage not in makers]
    if not using:
      return made + '.'
    return f'{made}. {_stored_needle_wording(using)}'
  if not using:
    made = any(stage.corpus.conversations.get('needle', 0) for stage in stages)
    why = (
      'needle conversations are made, but no stage reads them'
      if made
      else 'no needle conversations are made'
    )
    return (
      "The needle's wording is not in the training data of these stages:"
      f' {why}.'
    )
  return _stored_needle_wording(using)


def _stored_needle_wording(using):
  longest = max(stage.corpus.max_conversation_len for stage in using)
  text = (
    "The needle's wording is among the training conversations of"
    f' {_with_row_lens(using)}, in texts of at most {commas(longest)} tokens'
    ' (corpus.max_conversation_len)'
  )
  longer = [stage for stage in using if stage.data.seq_len > longest]
  if longer:
    text += (
      f'; the rows of {_with_row_lens(longer)} are longer, and have it at that'
      ' short length only'
    )
  return text + '.'


def _longest_made_needle(stage):
  """Tokens of the longest text that is made with needles in it; 0: none is."""
  return max(
    (
      source.max_len
      for source in stage.data.mixture.values()
      if isinstance(source, RetrievalRows)
      and source.weight > 0
      and source.tasks.get('needle')
    ),
    default=0,
  )


def _reads_stored_needles(stage):
  if not stage.corpus.conversations.get('needle', 0):
    return False
  return any(
    isinstance(source, ConversationRows)
    and source.weight > 0
    and (not source.conversations or 'needle' in source.conversations)
    for source in stage.data.mixture.values()
  )


def _with_row_lens(stages):
  """'stages a (rows of 128) and b (rows of 512)'."""
  word = 'stages' if len(stages) > 1 else 'stage'
  listed = [f'{s.name} (rows of {commas(s.data.seq_len)})' for s in stages]
  return f'{word} {" and ".join(listed)}'


# Curves ----------------------------------------------------------------------


def _curves(runs):
  """The figure of training loss and learning rate, or None without metrics."""
  curves, start = [], 0
  for run in runs:
    data, stop = run.config.data, start + run.results['tokens']
    per_step = data.batch_size * data.seq_len
    curves.append(
      figures.StageCurve(
        name=run.config.name,
        start=start,
        stop=stop,
        # Metrics of step k are from before its update, k steps after `start`.
        tokens=[start + int(m['step']) * per_step for m in run.metrics],
        losses=[m['loss'] for m in run.metrics],
        rates=[m['lr'] for m in run.metrics],
      )
    )
    start = stop
  if not any(curve.tokens for curve in curves):
    return None
  ends = ', '.join(f'{c.name} {c.losses[-1]:.2f}' for c in curves if c.losses)
  label = f'Training loss by tokens; last logged values: {ends}'
  return {
    'svg': markupsafe.Markup(figures.curves_svg(curves, label)),
    'to_scale': min(figures.panel_shares(curves)) >= figures.MIN_PANEL,
  }


def _positions(runs):
  losses = {
    run.config.name: run.results['evals']['val_loss_by_position']
    for run in runs
  }
  row_lens = {run.config.name: run.config.data.seq_len for run in runs}
  label = 'Validation loss by position, one line a stage; the table has it too'
  buckets = sorted(
    {bucket for by_position in losses.values() for bucket in by_position},
    key=lambda bucket: int(bucket.split('-')[0]),
  )
  return {
    'svg': markupsafe.Markup(figures.positions_svg(losses, row_lens, label)),
    'rows': [
      (bucket, [by_position.get(bucket) for by_position in losses.values()])
      for bucket in buckets
    ],
  }


# Tables ----------------------------------------------------------------------


def table_sections(runs: Sequence[StageRun]) -> list[dict[str, Any]]:
  """SynL accuracies: layout -> task -> one share for each (length, stage)."""
  found = [run.results['evals']['tables'] for run in runs]
  lengths = sorted({int(length) for tables in found for length in tables})
  names = [n for tables in found for cells in tables.values() for n in cells]
  sections: dict[str, list[str]] = {}
  for name in sorted(set(names)):
    layout, task = name.split(' ', 1)
    sections.setdefault(layout, []).append(task)
  return [
    {
      'layout': layout,
      'lengths': lengths,
      'rows': [
        (
          task,
          [
            tables.get(str(length), {}).get(f'{layout} {task}')
            for length in lengths
            for tables in found
          ],
        )
        for task in tasks
      ],
    }
    for layout, tasks in sections.items()
  ]

"""An inspection as one HTML page, inspect.html."""

import base64
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from longctx_jax.config import MeshConfig, StageConfig
from longctx_jax.data.batch_fields import context_window
from longctx_jax.data.chat import Chat
from longctx_jax.figures import STAGE_COLOURS
from longctx_jax.html_page import write_page
from longctx_jax.inspection.counts import shares_got
from longctx_jax.inspection.decoded import Gap, decode_row, visible
from longctx_jax.inspection.mask import mask_cells, mask_png
from longctx_jax.inspection.rows import Inspection, RowView
from longctx_jax.inspection.wording import (
  counted,
  epochs_text,
  share_text,
  stretch_text,
)
from longctx_jax.ops.attention_work import attention_work
from longctx_jax.sharding import context_parallel, make_mesh

# ours: some 30 screens of a row, and 0.5 MB at most.
TOKENS_SHOWN = 8192
STRETCHES_SHOWN = 100  # ours: the first of a row, and as many last ones
# ours: narrower parts of a bar than this share of it can't be pointed at.
NARROWEST = 1 / 400
# The last of the report's colours is dark grey, which is no colour on black.
COLOURS = STAGE_COLOURS[:-1]


class Part(NamedTuple):
  """A rectangle of a bar; x and width are shares of the row."""

  x: float
  width: float
  style: str  # a class
  title: str
  opacity: float = 1.0


def write_inspection(inspection: Inspection, chat: Chat, workdir: Path) -> Path:
  """Writes workdir/inspect.html; returns its path."""
  path = workdir / 'inspect.html'
  values = {
    'inspection': inspection,
    'stage': inspection.stage,
    'counts': inspection.counts,
    'last_step': inspection.counts.first_step + inspection.counts.num_steps - 1,
    'colours': COLOURS,
    'rows': [_row(row, inspection.stage, chat) for row in inspection.rows],
    'window': context_window(inspection.stage.data, inspection.step),
    'shares_got': shares_got,
  }
  write_page(
    path,
    values,
    {
      'share': share_text,
      'epochs': epochs_text,
      'visible': visible,
      'counted': counted,
    },
  )
  return path


def _row(row: RowView, stage: StageConfig, chat: Chat):
  """What the template shows of a row."""
  cells = mask_cells(row.batch.segment_ids)
  png = base64.b64encode(mask_png(cells.shares)).decode()
  stretches = list(enumerate(row.stretches))
  hidden = max(len(stretches) - 2 * STRETCHES_SHOWN, 0)
  return {
    'view': row,
    'T': len(row.batch.tokens),
    'cells': cells,
    'cell_len': int(cells.edges[1]),
    'png': f'data:image/png;base64,{png}',
    'tiles': _tiles(row, stage),
    'bars': bars(row),
    'stretches': stretches[:STRETCHES_SHOWN] if hidden else stretches,
    'last_stretches': stretches[-STRETCHES_SHOWN:] if hidden else [],
    'hidden': hidden,
    'text': list(_text(row, chat)),
  }


def _tiles(row, stage) -> dict[str, Any] | None:
  """The kernel's work on this row on one device; None: it is not in tiles."""
  if stage.model.attention == 'dense':
    return None
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  block_len = stage.model.attention_block_len
  work = attention_work(
    jnp.asarray(row.batch.segment_ids)[None],
    context_parallel(MeshConfig(), mesh),
    block_len,
  )
  return {
    'block_len': min(block_len, len(row.batch.tokens)),
    'number': float(work.tiles),
    'share': float(work.tile_share),
  }


def _text(row, chat):
  """(kind, piece, stretch) of decoded text: a gap, a border or a run."""
  shown = None
  for piece in decode_row(row, chat, TOKENS_SHOWN):
    if isinstance(piece, Gap):
      shown = None
      yield 'gap', piece, None
      continue
    stretch = row.stretches[piece.stretch]
    if piece.stretch != shown:
      shown = piece.stretch
      yield 'border', piece, stretch
    yield 'run', piece, stretch


# Bars ------------------------------------------------------------------------


def bars(row: RowView) -> list[tuple[str, list[Part]]]:
  """A row from left to right: its documents, its segments, its targets."""
  T = len(row.batch.tokens)
  documents = [
    (s.start, s.stop, f'd{s.document % len(COLOURS)}', stretch_text(s))
    for s in row.stretches
  ]
  ids = row.batch.segment_ids[: row.num_tokens]
  cuts = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]
  segments = [
    (a, b, f's{k % 2}', f'segment {k + 1}: {b - a:,} tokens from {a:,} on')
    for k, (a, b) in enumerate(itertools.pairwise(cuts))
  ]
  return [
    ('documents', _parts(documents, T, 'slices')),
    ('segments', _parts(segments, T, 'segments')),
    ('targets', _target_parts(row, T)),
  ]


def _parts(spans, T, what):
  """Rectangles of (start, stop, style, title); the narrow ones put together."""
  narrow, parts = [], []

  def flush():
    if not narrow:
      return
    a, b = narrow[0][0], narrow[-1][1]
    title = narrow[0][3]
    style = narrow[0][2]
    if len(narrow) > 1:
      title = f'{len(narrow):,} {what}, tokens {a:,} to {b - 1:,}'
      style = 'many'
    parts.append(Part(a / T, (b - a) / T, style, title))
    narrow.clear()

  for span in spans:
    if span[1] - span[0] >= NARROWEST * T:
      flush()
      narrow.append(span)
      flush()
      continue
    narrow.append(span)
    if span[1] - narrow[0][0] >= NARROWEST * T:
      flush()
  flush()
  return parts


def _target_parts(row, T):
  """How many of the tokens are targets, in parts as narrow as can be seen."""
  length = max(int(NARROWEST * T), 1)
  targets = (row.target_weights > 0).astype(np.int64)
  starts = np.arange(0, T, length)
  counts = np.add.reduceat(targets, starts)
  shares = counts / np.diff(starts, append=T)
  # Neighbours that look the same are one part.
  starts = starts[np.append(True, np.diff(shares) != 0)]
  counts = np.add.reduceat(targets, starts).tolist()
  stops = [*starts[1:].tolist(), T]
  return [
    Part(
      a / T,
      (b - a) / T,
      'target',
      f'{n:,} of tokens {a:,} to {b - 1:,} are targets',
      round(n / (b - a), 3),
    )
    for a, b, n in zip(starts.tolist(), stops, counts, strict=True)
    if n
  ]

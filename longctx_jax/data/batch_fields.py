"""From a row to the five fields of a Batch, with the options of `DataConfig`.

Each option changes fields and nothing else: what a row is made of is decided
before, and a model reads no option. All of it is a pure function of the row,
the config, the step, and a seed.
"""

import numpy as np

from longctx_jax.batch import Batch
from longctx_jax.data.row_sources import Row
from longctx_jax.data_config import DataConfig, PositionJumps


def batch_fields(
  row: Row,
  config: DataConfig,
  *,
  step: int,
  seed: tuple[int, ...],
  out: Batch | None = None,
) -> Batch:
  """The five fields of a Batch, each [T], from a row's tokens and slices.

  They are written to `out` if that is given.

  With a document mask each slice is a segment; without, the whole row is one.
  Position t predicts token t + 1, and the last one of the row predicts nothing.

      row                        11 12 13 | 21 22      seq_len 6
      targets                    12 13 21 22  0  0
      loss_weights                1  1  1  1  0  0
        label_first_token=False   1  1  0  1  0  0     first tokens: 11 and 21
        document_mask             1  1  0  1  0  0
        loss_normalizer=sequence .5 .5  0  1  0  0     with either of the two
      segment_ids                 1  1  1  1  1  0
        document_mask             1  1  1  2  2  0
      positions                   0  1  2  3  4  0
        restart_positions         0  1  2  0  1  0
  """
  if out is None:
    out = empty_batch(config.seq_len)
  used, lens = len(row.tokens), row.slice_lens[row.slice_lens > 0]
  for field in out:
    field[used:] = 0
  out.tokens[:used] = row.tokens
  out.targets[: used - 1] = row.tokens[1:]
  out.targets[used - 1] = 0
  weights = out.loss_weights[:used]
  weights[:-1] = row.loss_mask[1:]
  weights[-1] = 0
  ends = np.cumsum(lens)
  if config.document_mask or not config.label_first_token:
    weights[ends - 1] = 0
  if config.loss_normalizer == 'sequence':
    slice_ids = np.repeat(np.arange(len(lens)), lens)
    trained_per_slice = np.bincount(slice_ids, weights)
    weights /= np.maximum(trained_per_slice, 1)[slice_ids]
  segment_lens = lens if config.document_mask else np.array([used])
  ids = np.arange(1, len(segment_lens) + 1, dtype=np.int32)
  segments = np.repeat(ids, segment_lens)
  window = context_window(config, step)
  if window < used:
    segments = cut_at_windows(segments, window)
  out.segment_ids[:used] = segments
  positions = np.arange(used, dtype=np.int32)
  positions = _jump(positions, config.position_jumps, seed)
  if config.restart_positions:
    positions = positions - np.repeat(positions[ends - lens], lens)
  out.positions[:used] = positions
  return out


def empty_batch(*shape: int) -> Batch:
  """A Batch of fields of this shape, to be filled in."""
  # In one piece, which numpy asks the kernel to give in large pages: most of
  # what a batch costs is otherwise the first touch of its small ones.
  fields = Batch(*np.empty((len(Batch._fields), *shape), np.int32))
  return fields._replace(loss_weights=fields.loss_weights.view(np.float32))


def context_window(config: DataConfig, step: int) -> int:
  """How many tokens may see each other at a step; see `cut_at_windows`.

  SkyLadder's linear schedule (arXiv:2503.15450), min(w_e, w_s + floor(alpha *
  step)), is two entries; its stepwise one rounds down to a multiple as well.
  """
  schedule = config.window_schedule
  if not schedule:
    return config.seq_len
  window = np.interp(
    step, [entry.step for entry in schedule], [e.window for e in schedule]
  )
  return int(window) // config.window_multiple * config.window_multiple


def cut_at_windows(segments: np.ndarray, window: int) -> np.ndarray:
  """Segment ids from 1 on, of segments that are cut every `window` tokens.

  Counted from the start of the row, as SkyLadder does (query i sees key j iff
  floor(i / w) * w <= j <= i, and the document mask allows it). Positions and
  targets stay: the last token of a window predicts the first of the next one.

      segments          0 0 0 0 0 1 1 1
      window 4          1 1 1 1 2 3 3 3
      window 3          1 1 1 2 2 3 4 4
  """
  starts = np.append(False, segments[1:] != segments[:-1])
  starts |= np.arange(len(segments)) % window == 0
  return np.cumsum(starts)


def _jump(
  positions: np.ndarray, jumps: PositionJumps, seed: tuple[int, ...]
) -> np.ndarray:
  """Positions [n] of a row, with seeded skips, all below `jumps.target_len`.

  The row is cut into chunks, the first of which stays at 0. The model then sees
  distances of up to `target_len` in a row that is shorter.

      target_len 20, pose             0 1 2 | 13 14 15 16 17
      longrecipe, num_chunks 3        0 1 | 6 7 8 | 15 16 17

  'pose' (arXiv:2309.10400) has two chunks, and the second skips any number of
  positions; cut and skip are drawn as in its src/train_pose.py. 'longrecipe'
  (arXiv:2409.00509) spreads all chunks over the target, as preprocess_token_PI
  of its code does; its chunks are sentences.
  """
  n, spare = len(positions), jumps.target_len - len(positions)
  if jumps.kind == 'none':
    return positions
  rng = np.random.default_rng(seed)
  if jumps.kind == 'pose':
    cuts = rng.integers(1, (n + 1) // 2, size=1, endpoint=True)
    skips = rng.integers(0, spare, size=1, endpoint=True)
  else:
    # ours: cut anywhere. What ends a sentence depends on the tokenizer.
    num_cuts = min(jumps.num_chunks, n) - 1
    cuts = np.sort(rng.choice(np.arange(1, n), num_cuts, replace=False))
    # Sorted slots less those before them: every way to spread the spare
    # positions between the chunks is as likely.
    slots = np.sort(rng.choice(spare + num_cuts, num_cuts, replace=False))
    skips = slots - np.arange(num_cuts)
  chunk = np.searchsorted(cuts, positions, side='right')
  return positions + np.append(0, skips)[chunk]

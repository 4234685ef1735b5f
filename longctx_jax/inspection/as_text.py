"""An inspection as plain text, for a terminal."""

import textwrap

from longctx_jax.data.chat import Chat
from longctx_jax.inspection.counts import Counts, shares_got
from longctx_jax.inspection.decoded import Gap, decode_row, visible
from longctx_jax.inspection.rows import Inspection, RowView
from longctx_jax.inspection.wording import (
  counted,
  epochs_text,
  share_text,
  stretch_text,
)

WIDTH = 80
TOKENS_SHOWN = 300  # ours: of a row, a dozen lines
STRETCHES_SHOWN = 6  # ours: the first of a row, and as many last ones
OPEN, CLOSE = (
  '\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}',
  ('\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}'),
)
NEW_LINE = '\N{RETURN SYMBOL}'
_ON_ONE_LINE = {ord('\n'): NEW_LINE, ord('\t'): ' '}


def as_text(inspection: Inspection, chat: Chat) -> str:
  """Counts, the rule behind each, and rows."""
  stage, data = inspection.stage, inspection.stage.data
  lines = [
    f'stage {stage.name}, step {inspection.step} of {stage.train.steps}: '
    f'{data.batch_size} rows of {data.seq_len:,} tokens, seed {stage.seed},'
    f' data {inspection.fingerprint}',
    '',
    *count_lines(inspection.counts),
    *(
      line
      for about, rule in inspection.corpus
      for line in _hanging(f'corpus, {about}: ', visible(rule))
    ),
    '',
    f'{len(inspection.rows)} of the {data.batch_size} rows of step'
    f' {inspection.step}; {OPEN}{CLOSE} hold what is trained on, {NEW_LINE} is'
    ' a new line',
  ]
  for row in inspection.rows:
    lines += ['', *row_lines(row, chat)]
  return '\n'.join(lines) + '\n'


def count_lines(counts: Counts) -> list[str]:
  """The table of counts, and below it what its numbers are."""
  last = counts.first_step + counts.num_steps - 1
  heads = ['rows', 'tokens', 'padding', 'targets', 'weight', 'slices']
  heads += [
    *('documents', 'epochs'),
    *('tokens wanted', 'of rows', 'of tokens', 'of targets'),
  ]
  table = [['source', *heads]]
  for count in (*counts.sources, counts.total):
    numbers = (count.rows, count.tokens, count.padding, count.targets)
    shares = shares_got(count, counts.total)
    table.append(
      [
        visible(count.name),
        *(f'{n:,}' for n in numbers),
        f'{count.weight:,.2f}',
        f'{count.slices:,}',
        f'{count.documents:,}',
        epochs_text(count.epochs),
        *(share_text(share) for share in (count.share_wanted, *shares)),
      ]
    )
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  lines = [f'what steps {counts.first_step} to {last} take']
  for name, *cells in table:
    pairs = zip(cells, widths[1:], strict=True)
    row = '  '.join(cell.rjust(width) for cell, width in pairs)
    lines.append(f'  {name.ljust(widths[0])}  {row}')
  lines.append('')
  for count in counts.sources:
    lines += _hanging(f'{visible(count.name)}: ', visible(count.how))
  for column, rule in counts.rules:
    lines += _hanging(f'{column}: ', visible(rule))
  return lines


def row_lines(row: RowView, chat: Chat) -> list[str]:
  """Facts, stretches and text of a row."""
  num_left = len(row.batch.tokens) - row.num_tokens
  lines = _hanging(
    f'row {row.number}: ',
    f'row {row.origin.number} of {visible(row.origin.source)};'
    f' {row.num_tokens:,} tokens, {num_left:,} padding,'
    f' {row.num_targets:,} targets, {counted(row.num_segments, "segment")},'
    f' {counted(row.num_documents, "document")} in'
    f' {counted(len(row.origin.slices), "slice")}',
  )
  stretches = list(enumerate(row.stretches))
  hidden = len(stretches) - 2 * STRETCHES_SHOWN
  if hidden > 0:
    stretches[STRETCHES_SHOWN:-STRETCHES_SHOWN] = []
  for k, stretch in stretches:
    if hidden > 0 and k == STRETCHES_SHOWN + hidden:
      lines.append(f'  ... {hidden:,} more stretches ...')
    lines.append(
      f'  [{k}] from token {stretch.start:,}: {stretch_text(stretch)}'
    )
  return [*lines, *_text_lines(row, chat)]


def _text_lines(row, chat):
  """Decoded text; each stretch begins a line with its number."""
  paragraphs, shown = [], None
  for piece in decode_row(row, chat, TOKENS_SHOWN):
    if isinstance(piece, Gap):
      left_out = piece.stop - piece.start
      paragraphs.append(f'... {left_out:,} tokens left out ...')
      shown = None
      continue
    if piece.stretch != shown:
      shown = piece.stretch
      paragraphs.append(f'[{shown}] ')
    text = piece.text.translate(_ON_ONE_LINE)
    paragraphs[-1] += f'{OPEN}{text}{CLOSE}' if piece.weight > 0 else text
  width = WIDTH - 4
  return [
    f'    {text[i : i + width]}'
    for text in (p.replace(CLOSE + OPEN, '') for p in paragraphs)
    for i in range(0, len(text), width)
  ]


def _hanging(head, text):
  return textwrap.wrap(
    head + text,
    WIDTH,
    subsequent_indent='    ',
    break_long_words=False,
    break_on_hyphens=False,
  )

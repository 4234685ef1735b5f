"""evaluation.html and one PNG a suite: what results.json says, to look at."""

import io
import math
from pathlib import Path
from typing import Any

import markupsafe
import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from longctx_jax import figures
from longctx_jax.html_page import percent, write_page
from longctx_jax.report import cell

MEANINGS = {
  'needle': 'A sentence hidden in text, and a question about it.',
  'multi_needle': 'The same among sentences of other keys.',
  'passkey': 'InfiniteBench PassKey: five digits in repeated lines.',
  'number_string': 'InfiniteBench Number String: ten digits, with repeats.',
  'kv_retrieval': 'InfiniteBench KV: the value of a key among UUIDs.',
  'lost_in_the_middle': 'Lost in the Middle: the value of a key among UUIDs.',
}
# ours: 9,000 pixels; a grid of hundreds of lengths is past what PNGs can hold.
_MAX_INCHES = 60


def write_evaluation(results: dict[str, Any], directory: Path) -> Path:
  """Writes the page and the heatmaps; the path of the page."""
  maps = [
    heatmap_of(name, suite, results['max_len'])
    for name, suite in results['suites'].items()
    if 'cells' in suite
  ]
  for drawn in maps:
    write_png(drawn, results['model'], directory / f'{drawn["name"]}.png')
  path = directory / 'evaluation.html'
  write_page(
    path,
    {
      'title': results['model'],
      'about': results['about'],
      'max_len': results['max_len'],
      'maps': maps,
      'losses': [
        _losses(suite)
        for suite in results['suites'].values()
        if 'by_context' in suite
      ],
    },
    {},
  )
  return path


def heatmap_of(
  name: str, suite: dict[str, Any], max_len: int
) -> dict[str, Any]:
  """A suite's cells in rows of depths, ready to be shown."""
  lengths = sorted(map(int, suite['cells']))
  depths = sorted({d for c in suite['cells'].values() for d in c}, key=float)

  def score(length, depth):
    found = suite['cells'][str(length)].get(depth)
    return math.nan if found is None else found['score']

  shortest = suite.get('shortest', {})
  columns = [(shortest.get(str(n), n), n) for n in lengths]
  beyond = [length > max_len for length in lengths]
  return {
    'name': name,
    'meaning': MEANINGS.get(name, ''),
    **{k: suite[k] for k in ('score', 'num', 'truncated', 'answer_lost')},
    'lengths': lengths,
    'labels': [
      f'{last:,}' if first == last else f'{first:,}\u2013{last:,}'
      for first, last in columns
    ],
    'depths': depths,
    'scores': [[score(n, d) for n in lengths] for d in depths],
    'rows': [
      (percent(float(d)), [cell(score(n, d)) for n in lengths]) for d in depths
    ],
    'beyond': any(beyond),
    'edge': beyond.index(True) if any(beyond) else -1,
  }


def write_png(drawn: dict[str, Any], model: str, path: Path) -> None:
  """The heatmap as a picture, for papers and chats."""
  lengths, depths = drawn['lengths'], drawn['depths']
  with matplotlib.rc_context(figures.STYLE):
    figure = Figure(
      figsize=(
        min(1.8 + 0.75 * len(lengths), _MAX_INCHES),
        min(1.5 + 0.42 * len(depths), _MAX_INCHES),
      ),
      layout='constrained',
      dpi=150,
    )
    axes = figure.add_subplot()
    for row, scores in enumerate(drawn['scores']):
      for column, score in enumerate(scores):
        shown = cell(score)
        axes.add_patch(
          matplotlib.patches.Rectangle(
            (column, row), 1, 1, facecolor=shown.background, edgecolor='white'
          )
        )
        axes.text(
          column + 0.5, row + 0.5, shown.text,
          color=shown.ink, ha='center', va='center',
        )  # fmt: skip
    if drawn['edge'] > 0:
      axes.axvline(drawn['edge'], color='#b3261e', linewidth=1.5)
    axes.set_xlim(0, len(lengths))
    axes.set_ylim(len(depths), 0)
    axes.set_xticks(
      [i + 0.5 for i in range(len(lengths))],
      [label.replace('\u2013', '\u2013\n') for label in drawn['labels']],
    )
    axes.set_yticks(
      [i + 0.5 for i in range(len(depths))],
      [percent(float(d)) for d in depths],
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel('tokens of prompt and answer')
    axes.set_ylabel('depth of the answer')
    axes.set_title(
      f'{drawn["name"]}, {Path(model).name}', fontsize=10, parse_math=False
    )
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={'Software': None})
  path.write_bytes(out.getvalue())


def print_suite(name: str, suite: dict[str, Any]) -> None:
  """The map as text; of perplexity, the loss by context."""
  if 'by_context' in suite:
    rows = [['tokens before', 'loss', '95%']]
    rows += [
      [n, f'{m["loss"]:.4f}', f'{m["low"]:.4f} to {m["high"]:.4f}']
      for n, m in suite['by_context'].items()
    ]
    head = f'perplexity {math.exp(suite["loss"]["loss"]):.2f}'
  else:
    drawn = heatmap_of(name, suite, 0)
    rows = [['depth', *(x.replace(',', '') for x in drawn['labels'])]]
    rows += [
      [d, *(shown.text for shown in cells)] for d, cells in drawn['rows']
    ]
    head = f'{percent(suite["score"])} of {suite["num"]}'
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  print(f'\n{name}: {head}')
  for row in rows:
    cells = zip(row, widths, strict=True)
    print('  ' + '  '.join(cell.rjust(width) for cell, width in cells))


def _losses(suite) -> dict[str, Any]:
  position = suite['by_position']
  context = suite['by_context']
  charts = (
    (
      position,
      'position',
      'position in the text (tokens)',
      'Loss by position in the text',
    ),
    (
      context,
      'context',
      f'tokens before the same {suite["num_targets"]:,} tokens',
      'Loss of the same tokens by how much comes before them',
    ),
  )
  return {
    'perplexity': math.exp(suite['loss']['loss']),
    'num_documents': suite['num_documents'],
    'length': suite['length'],
    'svgs': [
      markupsafe.Markup(figures.means_svg(means, prefix, axis, label))
      for means, prefix, axis, label in charts
    ],
  }

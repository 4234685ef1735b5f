"""Figures of the report: curves as inline SVG, and the heatmaps' colours.

Figures are drawn without pyplot and its global state, and the same data gives
the same bytes: no date, and element ids from a fixed salt. Text stays text, so
that it can be searched and takes the page's font.
"""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, told apart by colour-blind readers; yellow is left
# out, because lines of it are hard to see on white.
STAGE_COLOURS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#56B4E9',
  '#333333',
)
# Black and white only: on the middle colours nothing softer has the contrast of
# 4.5 that WCAG 2.2 asks of text.
DARK_INK, LIGHT_INK = '#000000', '#ffffff'
AXIS = '#555555'
STYLE = {
  'svg.fonttype': 'none',
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': AXIS,
  'axes.labelcolor': DARK_INK,
  'xtick.color': AXIS,
  'ytick.color': AXIS,
  'xtick.labelcolor': DARK_INK,
  'ytick.labelcolor': DARK_INK,
  'grid.color': '#e4e4e4',
  'grid.linewidth': 0.8,
  'axes.axisbelow': True,
}
# A stage is given at least this share of the width, however few its tokens.
MIN_PANEL = 0.14
# Of the tokens before it: a stage with fewer is counted from its own start.
OWN_COUNT = 0.02
# From this ratio between the stages' rates on, a linear axis hides some.
LOG_LR_RATIO = 20


class StageCurve(NamedTuple):
  """What a stage logged: entry k of each list belongs to the same step."""

  name: str
  start: int  # tokens trained before the stage
  stop: int
  tokens: list[int]  # trained so far, earlier stages included
  losses: list[float]
  rates: list[float]


def stage_colour(i: int) -> str:
  """The colour of stage i, from 0."""
  return STAGE_COLOURS[i % len(STAGE_COLOURS)]


def shade(share: float) -> tuple[str, str]:
  """Background and text colour of a heatmap cell; 0 is pale, 1 is dark blue.

  ColorBrewer's YlGnBu, whose lightness falls all the way, so that it reads in
  grey and with any colour vision; the text is the ink with more contrast.
  """
  rgb = matplotlib.colormaps['YlGnBu'](float(share))[:3]
  light = _luminance(rgb)
  # WCAG 2.2's contrast ratio, (lighter + 0.05) / (darker + 0.05).
  dark_ratio = (light + 0.05) / (_luminance(_rgb(DARK_INK)) + 0.05)
  light_ratio = (_luminance(_rgb(LIGHT_INK)) + 0.05) / (light + 0.05)
  ink = DARK_INK if dark_ratio > light_ratio else LIGHT_INK
  return matplotlib.colors.to_hex(rgb), ink


def _rgb(colour):
  return matplotlib.colors.to_rgb(colour)


def _luminance(rgb):
  """Relative luminance of an sRGB colour (WCAG 2.2)."""
  linear = [
    x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def panel_shares(curves: Sequence[StageCurve]) -> list[float]:
  """Each stage's share of the tokens of all stages."""
  total = sum(curve.stop - curve.start for curve in curves)
  return [(curve.stop - curve.start) / total for curve in curves]


def curves_svg(curves: Sequence[StageCurve], label: str) -> str:
  """Training loss, and the learning rate below, over the tokens so far.

  `label` is what a screen reader says.
  """
  with matplotlib.rc_context(STYLE):
    return _svg(curves_figure(curves), 'curves', label)


def curves_figure(curves: Sequence[StageCurve]) -> Figure:
  """The figure of `curves_svg`: loss and rate panels, stage after stage."""
  # A short stage after a long one stays wide enough to be seen.
  widths = [max(share, MIN_PANEL) for share in panel_shares(curves)]
  widths = [width / sum(widths) for width in widths]
  figure = Figure(figsize=(12.4, 4.6), layout=None)
  grid = figure.add_gridspec(
    2,
    len(curves),
    width_ratios=widths,
    height_ratios=(2.4, 1),
    left=0.055,
    right=0.99,
    top=0.92,
    bottom=0.105,
    wspace=0,
    hspace=0.14,
  )
  rows = [[], []]
  for i, curve in enumerate(curves):
    for row, values in enumerate((curve.losses, curve.rates)):
      axes = figure.add_subplot(
        grid[row, i], sharey=rows[row][0] if rows[row] else None
      )
      rows[row].append(axes)
      finite = [v if math.isfinite(v) else math.nan for v in values]
      axes.plot(curve.tokens, finite, color=stage_colour(i), linewidth=1.5)
      axes.set_xticks(*token_ticks(curve, widths[i]))
      _style_panel(axes, curve, first=i == 0, last_row=row == 1)
    # Names come from the user: a '$' in one is no formula.
    rows[0][i].set_title(
      curve.name, fontweight='bold', fontsize=10, parse_math=False
    )
  rows[0][0].set_ylabel('training loss (nats)')
  rows[1][0].set_ylabel('learning rate')
  rows[0][0].set_ylim(bottom=0)
  if _ratio_of_peaks(curves) > LOG_LR_RATIO:
    rows[1][0].set_yscale('log')
  else:
    rows[1][0].set_ylim(bottom=0)
  figure.supxlabel('tokens trained so far', fontsize=9, x=0.52, y=0.005)
  return figure


def token_ticks(
  curve: StageCurve, width: float
) -> tuple[list[float], list[str]]:
  """Ticks of a stage's panel, which takes `width` of the figure (0 to 1).

  Counted from the first stage on; where the stage is so short that its labels
  would all say the same, from its own start: '+200M'.
  """
  span = curve.stop - curve.start
  own = span < OWN_COUNT * curve.start
  origin = curve.start if own else 0
  # A label is about 0.04 of the figure wide: at the ends of the panel it would
  # run into the next stage's.
  margin = 0.02 / width * span
  steps = MaxNLocator(max(3, round(12 * width))).tick_values(
    curve.start - origin, curve.stop - origin
  )
  inside = [
    float(x)
    for x in steps
    if curve.start + margin <= x + origin <= curve.stop - margin
  ]
  labels = [f'{"+" if own else ""}{short_count(x)}' for x in inside]
  return [x + origin for x in inside], labels


def _style_panel(axes, curve, *, first, last_row):
  axes.set_xlim(curve.start, curve.stop)
  axes.grid(axis='y')
  axes.tick_params(axis='x', labelbottom=last_row)
  if not first:
    axes.tick_params(axis='y', left=False, labelleft=False, which='both')
    axes.spines['left'].set(color='#888888', linestyle=(0, (4, 3)))


def _ratio_of_peaks(curves):
  peaks = [max(curve.rates, default=0.0) for curve in curves]
  peaks = [peak for peak in peaks if peak > 0]
  return max(peaks) / min(peaks) if peaks else 1.0


def positions_svg(
  losses: Mapping[str, Mapping[str, float]],
  row_lens: Mapping[str, int],
  label: str,
) -> str:
  """Validation loss by position, one line a stage.

  Args:
    losses: stage -> '0-64' -> loss in nats.
    row_lens: stage -> tokens of its training rows. Markers of positions beyond
      them are hollow.
    label: what a screen reader says.
  """
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(7.2, 3.7), layout='constrained')
    axes = figure.add_subplot()
    for i, (name, by_position) in enumerate(losses.items()):
      colour, values = stage_colour(i), list(by_position.values())
      inside = [int(b.split('-')[1]) <= row_lens[name] for b in by_position]
      axes.plot(values, color=colour, linewidth=1.6, label=f'{i}')
      axes.scatter(
        range(len(values)),
        values,
        s=30,
        zorder=3,
        linewidths=1.5,
        edgecolors=colour,
        facecolors=[colour if known else 'white' for known in inside],
      )
    buckets = max(losses.values(), key=len)
    axes.set_xticks(range(len(buckets)), buckets)
    axes.set_xlabel('position in the text (tokens)')
    axes.set_ylabel('validation loss (nats)')
    axes.grid(axis='y')
    legend = axes.legend(
      frameon=False, loc='upper left', bbox_to_anchor=(1.0, 1.0)
    )
    # Legends read formulas and hide names that begin with '_'; set afterwards,
    # a stage's name is shown as it is.
    for text, name in zip(legend.get_texts(), losses, strict=True):
      text.set_parse_math(False)
      text.set_text(name)
    return _svg(figure, 'positions', label)


def means_svg(
  means: Mapping[str, Mapping[str, float]], prefix: str, axis: str, label: str
) -> str:
  """Mean losses by bucket with their intervals.

  Args:
    means: bucket -> {'loss', 'low', 'high'} in nats.
    prefix: of the ids of elements, apart from those of other figures.
    axis: what the buckets are.
    label: what a screen reader says.
  """
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(6.2, 3.4), layout='constrained')
    axes = figure.add_subplot()
    values = [mean['loss'] for mean in means.values()]
    bars = [
      [mean['loss'] - mean['low'] for mean in means.values()],
      [mean['high'] - mean['loss'] for mean in means.values()],
    ]
    axes.errorbar(
      range(len(values)),
      values,
      yerr=np.maximum(bars, 0),
      color=STAGE_COLOURS[0],
      marker='o',
      capsize=3,
      linewidth=1.6,
    )
    axes.set_xticks(range(len(means)), list(means), rotation=30, ha='right')
    axes.set_xlabel(axis)
    axes.set_ylabel('loss (nats a token)')
    axes.grid(axis='y')
    return _svg(figure, prefix, label)


def short_count(number: float) -> str:
  """A count for an axis: 614400 -> '614K', 1.25e9 -> '1.25B'."""
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'K')):
    if abs(number) >= size:
      return f'{number / size:.3g}{unit}'
  return f'{number:.3g}'


def _svg(figure, prefix, label):
  """The figure as an <svg> element that scales, with ids of its own."""
  out = io.StringIO()
  with matplotlib.rc_context({'svg.hashsalt': prefix}):
    FigureCanvasSVG(figure).print_svg(
      out, metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    )
  # From <svg on: the XML and DOCTYPE lines have no place inside a page.
  text = out.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'(id="|url\(#|href="#)', rf'\g<1>{prefix}-', text)
  text = re.sub(r' (?:width|height)="[\d.]+pt"', '', text, count=2)
  named = f'<svg role="img" aria-label="{html.escape(label)}" '
  return text.replace('<svg ', named, 1)

"""Figures of the report: colours and axes that can be read."""

import numpy as np
import pytest

from longctx_jax import figures


def test_text_can_be_read_on_every_colour():
  def luminance(colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(
      rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4
    )
    return float(linear @ [0.2126, 0.7152, 0.0722])

  backgrounds = []
  for share in np.linspace(0, 1, 201):
    background, ink = figures.shade(share)
    dark, light = sorted([luminance(background), luminance(ink)])
    # WCAG 2.2, success criterion 1.4.3.
    assert (light + 0.05) / (dark + 0.05) >= 4.5
    backgrounds.append(luminance(background))
  # Without colour, darker still means more.
  assert all(np.diff(backgrounds) <= 0.002)
  assert backgrounds[0] > 0.9
  assert backgrounds[-1] < 0.03


@pytest.mark.parametrize(
  ('number', 'text'),
  [(0, '0'), (999, '999'), (614_400, '614K'), (2.5e6, '2.5M'), (4e11, '400B')],
)
def test_large_counts_are_short_on_an_axis(number, text):
  assert figures.short_count(number) == text


def test_a_short_stage_after_a_long_one_can_be_seen():
  long = figures.StageCurve('long', 0, 10**11, [0, 10**10], [3, 2], [0, 6e-4])
  short = figures.StageCurve(
    'short', 10**11, 10**11 + 10**8, [10**11], [2.0], [2e-5]
  )
  assert figures.panel_shares([long, short])[1] < 0.001
  figure = figures.curves_figure([long, short])
  widths = [axes.get_position().width for axes in figure.axes[::2]]
  assert widths[1] / sum(widths) > 0.1
  # Its rate is a thirtieth of the other's: a linear axis would hide it.
  assert figure.axes[1].get_yscale() == 'log'


def test_ticks_count_all_tokens_unless_their_labels_would_be_the_same():
  second = figures.StageCurve('second', 600_000, 800_000, [], [], [])
  ticks, labels = figures.token_ticks(second, 0.3)
  assert all(600_000 < x < 800_000 for x in ticks)
  assert labels == [figures.short_count(x) for x in ticks]
  late = figures.StageCurve('late', 4 * 10**11, 4 * 10**11 + 10**9, [], [], [])
  ticks, labels = figures.token_ticks(late, 0.14)
  assert labels
  assert labels == [f'+{figures.short_count(x - 4e11)}' for x in ticks]
  assert len(labels) == len(set(labels))

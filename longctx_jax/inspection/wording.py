"""How numbers and stretches are said, on a page and in a terminal."""

from longctx_jax.inspection.decoded import visible
from longctx_jax.inspection.rows import Stretch


def counted(number: float, noun: str) -> str:
  """A number of things: '1 segment', '1,024 segments'."""
  return f'{number:,.0f} {noun}{"" if number == 1 else "s"}'


def share_text(share: float | None) -> str:
  """A share with a digit behind the point; '-' of nothing.

  0.0% and 100.0% are kept for none and all.
  """
  if share is None:
    return '-'
  text = f'{100 * share:.1f}%'
  if text == '0.0%' and share > 0:
    return '<0.1%'
  return '>99.9%' if text == '100.0%' and share < 1 - 1e-9 else text


def epochs_text(epochs: tuple[float, float] | None) -> str:
  """Epochs before and after; '-' of what has no end."""
  return '-' if epochs is None else f'{epochs[0]:.3f}-{epochs[1]:.3f}'


def stretch_text(stretch: Stretch) -> str:
  """What a stretch of a row is, in a line."""
  origin = stretch.origin
  return visible(
    f'{origin.domain}/{origin.name} {origin.start:,}:{origin.stop:,},'
    f' segment {stretch.segment},'
    f' positions {stretch.first_position:,}-{stretch.last_position:,},'
    f' {stretch.num_targets:,} targets'
  )

"""Plans as one HTML page: a memory bar for each stage of a recipe."""

from collections.abc import Sequence
from pathlib import Path

from longctx_jax.figures import STAGE_COLOURS
from longctx_jax.html_page import write_page
from longctx_jax.plan.as_text import (
  NETWORKS,
  chips_text,
  documents_text,
  verdict,
)
from longctx_jax.plan.plan_stage import Plan

TEMPLATE = 'plan.html'


def write_plan_page(plans: Sequence[Plan], path: Path) -> None:
  """Writes the page of a recipe's stages, or of one stage."""
  widest = max(max(p.memory.total, p.memory.capacity) for p in plans)
  values = {
    'plans': [(plan, _bar(plan, widest)) for plan in plans],
    'colours': STAGE_COLOURS,
    'networks': NETWORKS,
  }
  filters = {
    'chips': chips_text,
    'documents': documents_text,
    'verdict': verdict,
    'gb': lambda num_bytes: f'{num_bytes / 1e9:,.2f}',
  }
  write_page(path, values, filters, TEMPLATE)


def _bar(plan, widest):
  """(label, bytes, where it starts, how wide), the last two of 100."""
  memory, start, parts = plan.memory, 0.0, []
  new_outputs = memory.outputs - memory.aliased
  for label, size in (
    ('arguments', memory.arguments),
    ('temporaries', memory.temporaries),
    ('outputs beside them', new_outputs),
  ):
    width = 100 * size / widest
    parts.append((label, size, start, width))
    start += width
  return {'parts': parts, 'capacity': 100 * memory.capacity / widest}

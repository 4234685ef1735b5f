"""Self-contained HTML pages: one file, for any browser, from a template.

Nothing is loaded from outside and no script runs. What a user wrote is text and
never markup: templates escape all that they show.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from longctx_jax.settings_table import ABSENT
from longctx_jax.workdir import write_atomically


def write_page(
  path: Path,
  values: Mapping[str, Any],
  filters: Mapping[str, Callable[..., Any]],
  template: str = '',
) -> None:
  """Writes the page of a template, by default of that named as the file is."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('longctx_jax'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {'percent': percent, 'commas': commas, **filters}
  page = environment.get_template(template or path.name).render(**values)
  # Character references read the same in whatever encoding the file is
  # written and served.
  write_atomically(path, page.encode('ascii', 'xmlcharrefreplace').decode())


def percent(share: float) -> str:
  """A share as a percentage; 0% and 100% are kept for none and all."""
  if math.isnan(share):
    return ABSENT
  rounded = round(100 * share)
  if 0 < share < 1:
    rounded = min(max(rounded, 1), 99)
  return f'{rounded}%'


def commas(number: float) -> str:
  """A number in full, with separators."""
  return f'{number:,.0f}'

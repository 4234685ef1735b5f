"""What results in one place must have in common, and what to say if not."""

from pathlib import Path
from typing import Any

from longctx_jax.config_from_dict import ConfigError

# ours: a line of a terminal holds it; needles and paths may be longer.
_SHOWN_CHARS = 60


def check_settings(there: Any, here: dict[str, Any], path: Path) -> None:
  """Compares the settings of results at `path` by the names in `here`.

  Raises:
    ConfigError: some differ; names each with both values.
  """
  if not isinstance(there, dict):
    raise ConfigError(
      f'{path} holds results that do not say their settings: give another --out'
    )
  differing = [
    f'{name} is {_shown(old, new)} there, {_shown(new, old)} here'
    for name, new in here.items()
    if (old := there.get(name)) != new
  ]
  if differing:
    raise ConfigError(
      f'{path} holds results with other settings ({"; ".join(differing)}):'
      ' give another --out'
    )


def _shown(value: Any, other: Any) -> str:
  """`value`; of a long one the part where it begins to differ."""
  text = repr(value)
  if len(text) <= _SHOWN_CHARS:
    return text
  pairs = enumerate(zip(text, repr(other), strict=False))
  same = next((i for i, (a, b) in pairs if a != b), 0)
  start = max(min(same - _SHOWN_CHARS // 2, len(text) - _SHOWN_CHARS), 0)
  stop = start + _SHOWN_CHARS
  before, after = '...' * (start > 0), '...' * (stop < len(text))
  return f'{before}{text[start:stop]}{after}'

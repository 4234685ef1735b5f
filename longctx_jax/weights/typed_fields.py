"""Fields of a file that others wrote, each checked for its kind as it is read.

A field that is null counts as one that is not there.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from longctx_jax.weights.tensor_table import WeightsError

MAX_WHOLE = 2**31 - 1  # ours: ids and positions are int32
MAX_NUMBER = 1e30  # ours: far below where float32 overflows
_NEEDED: Any = object()


class Fields(NamedTuple):
  """Name -> value, of the file `where`.

  Each method raises WeightsError for a field of another kind, and for a missing
  one unless there is a default; it names file and field, and what it found.
  """

  values: Mapping[str, Any]
  where: str
  section_name: str = ''  # 'rope_scaling.', of what is inside of it

  def whole(self, name: str, default: Any = _NEEDED, *, least: int = 1) -> Any:
    """A whole number."""
    return self._get(
      name,
      default,
      lambda x: type(x) is int and least <= x <= MAX_WHOLE,
      f'a whole number from {least} to {MAX_WHOLE}',
    )

  def number(
    self, name: str, default: Any = _NEEDED, *, least: float = 0
  ) -> Any:
    """A number that is neither infinite nor NaN."""
    return self._get(
      name,
      default,
      lambda x: type(x) in (int, float) and least <= x <= MAX_NUMBER,
      f'a number from {least} to {MAX_NUMBER}',
    )

  def flag(self, name: str, default: Any = _NEEDED) -> Any:
    """True or false."""
    return self._get(name, default, lambda x: type(x) is bool, 'true or false')

  def text(self, name: str, default: Any = _NEEDED) -> Any:
    """A text."""
    return self._get(name, default, lambda x: isinstance(x, str), 'a text')

  def list_of(self, name: str, kind: type) -> list[Any]:
    """A list whose items are all of one type."""
    return self._get(
      name,
      _NEEDED,
      lambda x: isinstance(x, list) and all(type(i) is kind for i in x),
      f'a list of {kind.__name__}',
    )

  def ids(self, name: str) -> tuple[int, ...]:
    """Ids of tokens, where there may be one, several or none."""
    value = self._get(
      name,
      [],
      lambda x: all(
        type(i) is int and 0 <= i <= MAX_WHOLE
        for i in (x if isinstance(x, list) else [x])
      ),
      'a token id, or a list of them',
    )
    return tuple(value if isinstance(value, list) else [value])

  def section(self, name: str) -> 'Fields':
    """The fields inside of a field; none if it is missing."""
    value = self._get(name, {}, lambda x: isinstance(x, dict), 'an object')
    return Fields(value, self.where, f'{self.section_name}{name}.')

  def _get(self, name, default, is_wanted, wanted):
    value = self.values.get(name)
    if value is None and default is not _NEEDED:
      return default
    if value is None or not is_wanted(value):
      found = 'missing' if value is None else _shown(value)
      raise WeightsError(
        f'{self.where}: {self.section_name}{name} is {found}, and should be'
        f' {wanted}'
      )
    return value


def _shown(value) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'

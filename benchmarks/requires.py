"""Says which of the benchmarks' packages are missing, and how to have them."""

import importlib.util


def require(*modules: str) -> None:
  """Ends the program with one line if a module is not installed."""
  missing = [name for name in modules if importlib.util.find_spec(name) is None]
  if missing:
    raise SystemExit(
      f'{" and ".join(missing)} missing: pip install -r'
      ' benchmarks/requirements.txt'
    )

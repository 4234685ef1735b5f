"""Training metrics, as JSON lines and as TensorBoard events."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricsWriter:
  """Appends to metrics.jsonl and an event file; use as a context manager."""

  def __init__(self, directory: Path, first_step: int = 0):
    """Opens the files; lines of steps that will be done again are dropped."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / 'metrics.jsonl'
    kept = [m for m in read_metrics(path) if m['step'] < first_step]
    partial = path.with_suffix('.partial')
    partial.write_text(''.join(json.dumps(m) + '\n' for m in kept))
    partial.replace(path)
    self._lines = path.open('a')
    self._events = SummaryWriter(
      str(directory / 'tensorboard'), purge_step=first_step
    )

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Records the metrics of one step."""
    self._lines.write(json.dumps({'step': step, **metrics}) + '\n')
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)

  def flush(self) -> None:
    """Writes out what is buffered."""
    self._lines.flush()
    self._events.flush()

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *exc_info) -> None:
    self._lines.close()
    self._events.close()


class NoMetrics:
  """Writes nothing: of several processes all but the first."""

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Does nothing."""

  def flush(self) -> None:
    """Does nothing."""

  def __enter__(self) -> 'NoMetrics':
    return self

  def __exit__(self, *exc_info) -> None:
    pass


def read_metrics(path: Path) -> list[dict[str, float]]:
  """The records of a metrics.jsonl; a line cut off by a kill is left out."""
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records

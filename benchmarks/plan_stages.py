"""Whether each stage fits on each topology of its config, and how long it is.

Nothing runs: libtpu compiles for chips that are not there. GB are what a chip
has to hold, of what a program may use of it; times are *predicted*, by the
slowest part of a chip at its published peak, so no stage is faster. Rows are
taken to be one document each, which is the most there can be to do.

    pip install -e '.[plan]'
    python -m benchmarks.plan_stages --out=plan_stages.json
"""

import argparse
import importlib.metadata

from benchmarks.timing import measure_all, report
from configs.longskywork import cip, long_sft, pretrain
from configs.longskywork import sft as longskywork_sft
from configs.prolong import sft as prolong_sft
from configs.prolong import stage_64k, stage_512k
from longctx_jax.config import StageConfig, from_config_dict
from longctx_jax.plan.plan_stage import plan_stage

STAGES = {
  'longskywork/pretrain': pretrain,
  'longskywork/cip': cip,
  'longskywork/sft': longskywork_sft,
  'longskywork/long_sft': long_sft,
  'prolong/stage_64k': stage_64k,
  'prolong/stage_512k': stage_512k,
  'prolong/sft': prolong_sft,
}


def measure(name: str, topology: str) -> dict[str, object]:
  """One line of the table."""
  config = STAGES[name].get_config(f'topology={topology}')
  plan = plan_stage(from_config_dict(StageConfig, config), topology)
  axes = {axis: size for axis, size in plan.axis_sizes.items() if size > 1}
  line = {
    'stage': name,
    'chips': f'{topology} ({plan.num_chips})',
    'mesh': ' x '.join(f'{axis} {size}' for axis, size in axes.items()),
    'GB': plan.memory.total / 1e9,
    'of': plan.memory.capacity / 1e9,
    'fits': 'yes' if plan.memory.fits else 'NO',
  }
  if plan.time is None:
    said = ('step s', 'tokens/s', 'days', 'chip-hours', 'bound by')
    return {**line, **dict.fromkeys(said, ''), 'compile s': plan.seconds}
  return {
    **line,
    'step s': plan.time.step_s,
    'tokens/s': plan.tokens_per_step / plan.time.step_s,
    'days': plan.days,
    'chip-hours': plan.chip_hours,
    'bound by': plan.time.bottleneck,
    'compile s': plan.seconds,
  }


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', default='', help='JSON file to write')
  parser.add_argument('--stages', nargs='+', default=list(STAGES))
  parser.add_argument('--chips', nargs='+', help='v5p-8 ...; without, all')
  args = parser.parse_args()
  print(f'libtpu {importlib.metadata.version("libtpu")}')
  cases = [
    (name, topology)
    for name in args.stages
    for topology in STAGES[name].TOPOLOGIES
    if not args.chips or topology in args.chips
  ]
  report(measure_all(measure, cases), args.out)


if __name__ == '__main__':
  main()

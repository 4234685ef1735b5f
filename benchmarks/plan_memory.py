"""What a training step of Llama-3-8B holds on TPU chips, against MaxText's.

Nothing runs: libtpu compiles for chips that are not there. One row, split over
all chips by ring attention; AdamW, parameters and moments in float32, full
remat. GB are of a chip's HBM, beside parameters and optimizer.

MaxText's figures are the temporaries that `train_compile` of 0.2.5 says of the
same model on the same chips (zigzag, full remat, eight vocabulary tiles), with
its ring, or with its all-gather where that was tried and took less. They were
compiled once, with a libtpu that was not written down, and are XLA's count
(`temp_size_in_bytes`); ours are by the peak, see plan/compile_step.py.

    pip install -e '.[plan]'
    python -m benchmarks.plan_memory --out=plan_memory.json
"""

import argparse
import importlib.metadata

from benchmarks.timing import measure_all, report
from configs.prolong import stage_64k
from longctx_jax.config import StageConfig, from_config_dict
from longctx_jax.plan.plan_stage import plan_stage
from longctx_jax.plan.topology import num_chips

# Tokens of the row, chips, MaxText's GB.
CASES = (
  (65_536, 'v5p:2x2x2', 10.77),
  (524_288, 'v5p:2x2x4', 50.68),
  (32_768, 'v5e:4x4', 4.18),
)


def stage(seq_len: int, chips: str) -> StageConfig:
  """ProLong's stage, but for its rows: one, of one document."""
  config = stage_64k.get_config()
  config.data.seq_len, config.data.batch_size = seq_len, 1
  config.data.mixture = {'text': stage_64k.short_documents(1.0)}
  config.mesh.fsdp, config.mesh.context = 1, num_chips(chips)
  return from_config_dict(StageConfig, config)


def measure(seq_len: int, chips: str, maxtext_gb: float) -> dict[str, object]:
  """One line of the table."""
  plan = plan_stage(stage(seq_len, chips), chips)
  temporaries = plan.memory.temporaries / 1e9
  return {
    'T': seq_len,
    'chips': chips,
    'arguments GB': plan.memory.arguments / 1e9,
    'temporaries GB': temporaries,
    'MaxText GB': maxtext_gb,
    'ratio': temporaries / maxtext_gb,
    'compile s': plan.seconds,
  }


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', default='', help='JSON file to write')
  args = parser.parse_args()
  print(f'libtpu {importlib.metadata.version("libtpu")}')
  report(measure_all(measure, CASES), args.out)


if __name__ == '__main__':
  main()

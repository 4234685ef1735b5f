"""The kernel that benchmarks of attention on a CPU measure."""

import argparse

from longctx_jax.ops.kernels import cpp_library
from longctx_jax.ops.kernels.choice import Facts, choose_kernel, kernel_of


def add_flag(parser: argparse.ArgumentParser) -> None:
  """--kernel."""
  parser.add_argument(
    '--kernel', default='auto', choices=('auto', 'cpp', 'xla'), help='of ours'
  )


def chosen_kernel(wanted: str):
  """What training would take on this machine; says so."""
  problem = cpp_library.why_unavailable()
  facts = Facts('cpu', 512, 64, 'float32', cpp_problem=problem)
  choice = choose_kernel(wanted, facts)
  print(f'kernel {choice.name!r}: {choice.reason}')
  return kernel_of(choice.name)

"""TPU topologies by name, and what is published of their chips.

Nothing here runs on a TPU: libtpu describes the chips of a topology, and
compiles for them on any machine.
"""

import contextlib
import glob
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.experimental import topologies

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.flops import PEAK_FLOPS

# What hosts of TPUs have: v4 and older, and newer ones.
TPU_FILES = ('/dev/accel*', '/dev/vfio/[0-9]*')
GB = 1e9
GIB = 2**30


class Chip(NamedTuple):
  """One chip: what programs may use of it, and the speeds of its parts."""

  name: str  # as topologies are called
  kind: str  # JAX's device_kind, the key of PEAK_FLOPS
  hbm_bytes: int  # that a program may use
  hbm_bytes_per_s: float
  ici_links: int
  ici_bytes_per_s: float  # of one link, one way
  dcn_bytes_per_s: float  # of one chip, one way
  host_bytes_per_s: float  # of one chip and its host's memory, one way
  shapes: tuple[str, ...]  # known to be offered
  source: str

  @property
  def peak_flops(self) -> float:
    """In bfloat16, FLOP/s."""
    return PEAK_FLOPS[self.kind]


_2D = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_3D = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
  *('8x8x16', '8x16x16', '16x16x16', '16x16x24'),
)

# Bandwidth and links: cloud.google.com/tpu/docs, one page a generation, read in
# 2026. They give ICI per chip, all links, both ways: a link one way is that by
# 2 x links. Memory: what libtpu 0.0.52 says is available when a program is too
# large, of the 16, 95 and 32 GB that are published. v4 and TPU7x have two of
# JAX's devices on a chip, and are left out. PCIe to the host's memory: Austin
# et al., "How to Scale Your Model", jax-ml.github.io/scaling-book/tpus.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name='v5e',
      kind='TPU v5 lite',
      hbm_bytes=int(15.75 * GIB),
      hbm_bytes_per_s=819 * GB,
      ici_links=4,
      ici_bytes_per_s=400 * GB / 8,
      # 2 x 100 Gbps a host of 8 chips; 6.4 Tbps a pod of 256.
      dcn_bytes_per_s=25 * GB / 8,
      host_bytes_per_s=15 * GB,
      shapes=_2D,
      source='cloud.google.com/tpu/docs/v5e',
    ),
    Chip(
      name='v5p',
      kind='TPU v5',
      hbm_bytes=int(95.73 * GIB),
      hbm_bytes_per_s=2765 * GB,
      ici_links=6,
      ici_bytes_per_s=1200 * GB / 12,
      dcn_bytes_per_s=50 * GB / 8,
      host_bytes_per_s=15 * GB,
      shapes=_3D,
      source='cloud.google.com/tpu/docs/v5p',
    ),
    Chip(
      name='v6e',
      kind='TPU v6 lite',
      hbm_bytes=int(31.24 * GIB),
      hbm_bytes_per_s=1638 * GB,
      ici_links=4,
      ici_bytes_per_s=800 * GB / 8,
      # 4 x 200 Gbps a host of 8 chips; 25.6 Tbps a pod of 256, the same page.
      dcn_bytes_per_s=100 * GB / 8,
      host_bytes_per_s=32 * GB,
      shapes=_2D,
      source='cloud.google.com/tpu/docs/v6e',
    ),
  )
}


def known_topologies() -> str:
  """Names that --topology takes, for people."""
  return '; '.join(
    f'{name}: {" ".join(chip.shapes)}' for name, chip in CHIPS.items()
  )


def by_shape(topology: str) -> str:
  """'v5p:2x4x4' for 'v5p-64', as launchers and configs call it, or as it is.

  Google counts cores of v5p, of which a chip has two, and chips of the others.
  """
  name, _, number = topology.partition('-')
  if name in CHIPS and number.isdecimal():
    wanted = int(number) / (2 if name == 'v5p' else 1)
    for shape in CHIPS[name].shapes:
      if num_chips(f'{name}:{shape}') == wanted:
        return f'{name}:{shape}'
  return topology


def chip_of(topology: str) -> Chip:
  """The chip of 'v5p:2x2x4', or 'v5p-32'.

  Raises:
    ConfigError: there is no such topology.
  """
  name, _, shape = by_shape(topology).partition(':')
  if name not in CHIPS or shape not in CHIPS[name].shapes:
    raise ConfigError(
      f'--topology={topology}: no such topology. Known are, as'
      f' --topology=v5p:2x2x4 or v5p-32, {known_topologies()}'
    )
  return CHIPS[name]


def num_chips(topology: str) -> int:
  """Of one slice: 16 of 'v5p:2x2x4'."""
  shape = by_shape(topology).partition(':')[2]
  count = 1
  for side in re.findall(r'\d+', shape):
    count *= int(side)
  return count


def topology_devices(topology: str, num_slices: int = 1) -> list:
  """The devices of a topology, which can be compiled for and nothing else.

  Raises:
    ConfigError: no such topology, or libtpu is not installed or not usable.
  """
  chip_of(topology)
  if importlib.util.find_spec('libtpu') is None:
    raise ConfigError(
      'planning compiles with libtpu, which is not installed:'
      " pip install 'longctx_jax[plan]'"
    )
  # Ask no cloud which TPU this is; and no TPU is used that another process
  # could be using.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', 'true')
  more = {'num_slices': num_slices} if num_slices > 1 else {}
  if num_chips(topology) == 1:
    more['chips_per_host_bounds'] = (1, 1, 1)  # libtpu 0.0.42 assumes 2x2x1
  with quiet_libtpu():
    try:
      return list(
        topologies.get_topology_desc(
          platform='tpu', topology_name=by_shape(topology), **more
        ).devices
      )
    except jax.errors.JaxRuntimeError as error:
      reason = ' '.join(str(error).split())
      raise ConfigError(f'--topology={topology}: {reason}') from error


def find_devices() -> None:
  """Has JAX look for devices: where libtpu is there to plan, without a word.

  It says that there is no TPU, which JAX finds out by asking it.
  """
  is_for_planning = importlib.util.find_spec('libtpu') and not any(
    glob.glob(files) for files in TPU_FILES
  )
  with quiet_libtpu() if is_for_planning else contextlib.nullcontext():
    jax.devices()


@contextlib.contextmanager
def quiet_libtpu() -> Iterator[None]:
  """Keeps from stderr what libtpu says about the TPU that is not there."""
  stderr = os.dup(2)
  with open(os.devnull, 'w') as nothing:
    os.dup2(nothing.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(stderr, 2)
    os.close(stderr)

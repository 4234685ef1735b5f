"""Which device stands where in the mesh.

Devices are joined by fast links inside of a slice (ICI of TPUs), slices by the
data centre's network (DCN) alone. So of the mesh axes only `data`, along which
gradients are added once a step (`train_step`), spans slices:

  slices 2, data 4          data 0 1   slice 0
                            data 2 3   slice 1

Inside a slice of TPUs, `jax.experimental.mesh_utils` lays axes along the torus,
the ones that send most (`tensor`, then `context`) first.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from longctx_jax.config import ConfigError


def order_devices(
  devices: Sequence[Any],
  shape: Sequence[int],
  num_slices: int,
  *,
  by_links: bool,
) -> np.ndarray:
  """The devices as an array of `shape`, whose first axis is `data`.

  Args:
    devices: as many as the shape has places.
    shape: of the mesh.
    num_slices: how many slices the config says there are.
    by_links: along the links of a slice of TPUs, not just as given.

  Raises:
    ConfigError: there are other slices, or `data` does not divide over them.
  """
  slices = _slices(devices, num_slices)
  if len(slices) != num_slices:
    raise ConfigError(
      f'mesh.slices={num_slices}, but the {len(devices)} devices are of'
      f' {len(slices)} slice(s): set mesh.slices to that'
    )
  data, *others = shape
  if data % num_slices:
    raise ConfigError(
      f'mesh.data={data} is not a multiple of mesh.slices={num_slices}: of all'
      ' axes only data spans slices'
    )
  sizes = [len(devices) for devices in slices]
  if len(set(sizes)) > 1:
    raise ConfigError(
      f'mesh.slices={num_slices}: the slices have {sizes} devices, and must'
      ' have equally many'
    )
  order = _along_links if by_links and devices[0].platform == 'tpu' else _given
  inner = (data // num_slices, *others)
  return np.concatenate([order(devices, inner) for devices in slices])


def _slices(devices, num_slices):
  """Devices by slice; where they do not say, processes are dealt to slices."""
  if num_slices > 1 and not hasattr(devices[0], 'slice_index'):
    processes = sorted({device.process_index for device in devices})
    # TPUs say of what slice they are if there are several.
    if devices[0].platform == 'tpu' or len(processes) % num_slices:
      return [devices]
    share = len(processes) // num_slices

    def key(device):
      return processes.index(device.process_index) // share

  else:

    def key(device):
      return getattr(device, 'slice_index', 0)

  return [
    list(group) for _, group in itertools.groupby(sorted(devices, key=key), key)
  ]


def _given(devices, shape):
  array = np.empty(len(devices), object)
  array[:] = devices
  return array.reshape(shape)


def _along_links(devices, shape):
  return mesh_utils.create_device_mesh(
    shape, devices, allow_split_physical_axes=True
  )

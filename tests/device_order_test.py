"""Slices and links: which device stands where in the mesh."""

import types

import numpy as np
import pytest
from jax.experimental import mesh_utils

from longctx_jax.config import ConfigError, MeshConfig
from longctx_jax.device_order import order_devices
from longctx_jax.sharding import host_block, make_mesh


class Chip(types.SimpleNamespace):
  """What the mesh reads of a device."""

  __hash__ = object.__hash__


def tpus(num_slices, x, y, z):
  """Chips as JAX shows them, hosts of 2 x 2 of them, in the order it does."""
  return [
    Chip(
      id=100 * s + a + x * b + x * y * c,
      process_index=s * z + c,
      slice_index=s,
      coords=[a, b, c],
      core_on_chip=0,
      platform='tpu',
      device_kind='TPU v5',
    )
    for s in range(num_slices)
    for c in range(z)
    for b in range(y)
    for a in range(x)
  ]


def cpus(num_processes, each):
  return [
    types.SimpleNamespace(id=i, process_index=i // each, platform='cpu')
    for i in range(num_processes * each)
  ]


def slice_of(array):
  return np.vectorize(lambda device: device.slice_index)(array)


def coords(array):
  return [tuple(device.coords) for device in array.flat]


@pytest.mark.parametrize('by_links', [True, False])
@pytest.mark.parametrize('shape', [(2, 2, 2, 2), (4, 1, 4, 1), (2, 1, 8, 1)])
def test_data_alone_spans_slices_in_their_order(shape, by_links):
  devices = tpus(2, 2, 2, 2)
  order = order_devices(devices[::-1], shape, 2, by_links=by_links)
  assert order.shape == shape
  assert {d.id for d in order.flat} == {d.id for d in devices}
  half = shape[0] // 2
  assert (slice_of(order[:half]) == 0).all()
  assert (slice_of(order[half:]) == 1).all()


def test_a_mesh_has_the_slices_of_its_config():
  mesh = make_mesh(MeshConfig(data=2, fsdp=-1, slices=2), tpus(2, 2, 2, 1))
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 4, 'context': 1, 'tensor': 1}
  assert (slice_of(mesh.devices[0]) == 0).all()
  assert [host_block(mesh, process) for process in (0, 1)] == [(0, 2), (1, 2)]


def test_neighbours_on_an_axis_are_neighbours_on_the_torus():
  # 16 chips as JAX lists them: four on a row of x and y, then the next z.
  order = order_devices(tpus(1, 4, 4, 4), (1, 4, 16, 1), 1, by_links=True)
  for row in order[0, :, :, 0]:
    # The axis that sends more has a plane of links, not a line.
    along = np.ptp(coords(row), axis=0)
    assert sorted(along) == [0, 3, 3]
  given = order_devices(tpus(1, 4, 4, 4), (1, 4, 16, 1), 1, by_links=False)
  assert [d.id for d in given.flat] == list(range(64))


def test_an_axis_may_be_longer_than_a_side_of_the_torus():
  order = order_devices(tpus(1, 2, 2, 4), (1, 2, 8, 1), 1, by_links=True)
  expected = mesh_utils.create_device_mesh(
    (1, 2, 8, 1), tpus(1, 2, 2, 4), allow_split_physical_axes=True
  )
  assert coords(order) == coords(expected)


def test_links_do_not_scatter_the_rows_of_a_host():
  # Hosts have a plane of z each. Context over z splits rows among all of them;
  # fsdp over all three axes would give each host every fourth row.
  config = MeshConfig(fsdp=4, context=4)
  by_links = order_devices(tpus(1, 2, 2, 4), (1, 4, 4, 1), 1, by_links=True)
  mesh = make_mesh(config, tpus(1, 2, 2, 4))
  assert coords(mesh.devices) == coords(by_links)
  mesh = make_mesh(MeshConfig(fsdp=16), tpus(1, 2, 2, 4))
  assert [host_block(mesh, p) for p in range(4)] == [(p, 4) for p in range(4)]
  by_links = order_devices(tpus(1, 2, 2, 4), (1, 16, 1, 1), 1, by_links=True)
  assert coords(mesh.devices) != coords(by_links)


def test_processes_are_dealt_to_slices_where_devices_do_not_say():
  order = order_devices(cpus(4, 2), (2, 1, 4, 1), 2, by_links=True)
  owners = [[d.process_index for d in row.flat] for row in order]
  assert owners == [[0, 0, 1, 1], [2, 2, 3, 3]]


@pytest.mark.parametrize(
  ('devices', 'shape', 'num_slices', 'says'),
  [
    (
      tpus(2, 2, 2, 1),
      (1, 8, 1, 1),
      2,
      'mesh.data=1 is not a multiple of mesh.slices=2',
    ),
    (
      tpus(2, 2, 2, 1),
      (2, 4, 1, 1),
      1,
      r'mesh.slices=1, but the 8 devices are of 2 slice\(s\)',
    ),
    (
      tpus(1, 2, 2, 2),
      (2, 4, 1, 1),
      2,
      r'mesh.slices=2, but the 8 devices are of 1 slice\(s\)',
    ),
    (
      cpus(3, 2),
      (2, 3, 1, 1),
      2,
      r'mesh.slices=2, but the 6 devices are of 1 slice\(s\)',
    ),
    (
      tpus(2, 2, 2, 1)[:6],
      (2, 3, 1, 1),
      2,
      r'mesh.slices=2: the slices have \[4, 2\] devices',
    ),
  ],
)
def test_slices_that_are_not_there_are_refused(
  devices, shape, num_slices, says
):
  with pytest.raises(ConfigError, match=says) as error:
    order_devices(devices, shape, num_slices, by_links=True)
  assert '\n' not in str(error.value)


def test_tpus_of_one_slice_are_not_cut_by_processes():
  devices = tpus(1, 2, 2, 2)
  for device in devices:
    del device.slice_index  # JAX leaves it out if there is one slice
  with pytest.raises(ConfigError, match='devices are of 1 slice'):
    order_devices(devices, (2, 4, 1, 1), 2, by_links=True)

"""Checksums: sums over parts are the whole's, and no flipped bit is missed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from longctx_jax.checksums import MODULUS, checksum_of_part, checksums


def drawn(rng, dtype):
  return rng.integers(-(2**31), 2**31, (6, 8, 4)).astype(np.dtype(dtype))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int32', 'uint8'])
def test_parts_add_up_to_what_devices_sum(rng, dtype):
  x = drawn(rng, jnp.dtype(dtype))
  mesh = jax.make_mesh((8,), ('fsdp',), (AxisType.Auto,))
  placed = jax.device_put(x, NamedSharding(mesh, P(None, 'fsdp')))
  expected = checksums({'w': placed, 'scalar': jnp.float32(1.0)})
  assert expected == {
    "['w']": checksum_of_part(x),
    "['scalar']": np.float32(1.0).view(np.uint32),
  }
  for axis in range(3):
    parts = np.split(x, 2, axis)
    added = sum(checksum_of_part(part) for part in parts) % MODULUS
    assert added == expected["['w']"]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_every_flipped_bit_shows(rng, dtype):
  x = drawn(rng, jnp.dtype(dtype))
  before = checksum_of_part(x)
  words = x.view(f'uint{8 * x.itemsize}')
  for bit in range(8 * x.itemsize):
    words[3, 5, 1] ^= 1 << bit
    assert checksum_of_part(x) != before
    words[3, 5, 1] ^= 1 << bit

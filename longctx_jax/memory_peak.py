"""The high-water mark of memory, as far as it can be asked for."""

import sys

import jax

try:
  import resource
except ImportError:  # Windows has none
  resource = None


def peak_memory() -> dict[str, float]:
  """The most bytes used so far on the fullest of this process's devices.

  Where the devices don't say (CPUs) by the process: `host_peak_bytes`.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if all('peak_bytes_in_use' in each for each in stats):
    most = max(each['peak_bytes_in_use'] for each in stats)
    return {'device_peak_bytes': float(most)}
  if resource is None:
    return {}
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # Kilobytes, but on macOS bytes.
  return {'host_peak_bytes': most * (1.0 if sys.platform == 'darwin' else 1024)}

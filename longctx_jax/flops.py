"""Floating-point operations that a model needs, and what a device could do.

Model FLOPs count each product once, whatever is computed again (PaLM,
arXiv:2204.02311, appendix B), and of attention only the pairs of tokens that
attend to each other: counting a packed row as one long document would make the
utilisation look better the more work is skipped.
"""

import math
import time

import numpy as np

from longctx_jax.config import ModelConfig

# Peak of one device, bfloat16 with float32 sums, without sparsity, in FLOP/s.
# Keys are JAX's device_kind. Sources: cloud.google.com/tpu/docs, one page a
# generation; NVIDIA's data sheets of A100 (SXM and PCIe, 40 and 80 GB, have one
# figure), H100 and H200 (SXM).
PEAK_FLOPS = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA A100-PCIE-40GB': 312e12,
  'NVIDIA A100 80GB PCIe': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
}


def training_flops(
  config: ModelConfig, num_tokens: float, attended_pairs: float
) -> float:
  """FLOPs of a forward and a backward pass.

  Args:
    config: the model.
    num_tokens: tokens in the batch, padding left out.
    attended_pairs: (query, key) pairs that attend, over the batch.
  """
  D, F = config.embed_dim, config.hidden_dim
  N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
  per_layer = D * H * (2 * N + 2 * K) + 3 * D * F
  matrices = config.num_layers * per_layer + D * config.vocab_size
  # A product of n numbers is 2n operations; of a layer's attention, one of H
  # for the score and one of H for the value, in every head.
  attention = config.num_layers * 2 * N * H
  forward = 2 * (matrices * num_tokens + attention * attended_pairs)
  return 3 * forward  # the gradients of a product are two more like it


class Throughput:
  """Rates since the last time they were taken; the first include compiling."""

  def __init__(
    self, config: ModelConfig, devices: np.ndarray, batch: tuple[int, int]
  ):
    """`batch` is [B, T], whose rows would be one document each if `causal`."""
    kind = devices.flat[0].device_kind
    self._peak = PEAK_FLOPS.get(kind, math.nan) * devices.size
    self._config, self._num_devices = config, devices.size
    B, T = batch
    self._causal = training_flops(config, B * T, B * T * (T + 1) / 2)
    self._reset()

  def _reset(self):
    self._began = time.monotonic()
    self._steps = 0
    self._tokens = self._flops = self._data_wait_s = 0.0

  def add(
    self, num_tokens: float, attended_pairs: float, data_wait_s: float
  ) -> None:
    """Counts one step."""
    self._steps += 1
    self._tokens += num_tokens
    self._flops += training_flops(self._config, num_tokens, attended_pairs)
    self._data_wait_s += data_wait_s

  def take(self) -> dict[str, float]:
    """Seconds a step, tokens and model FLOPs a second.

    `mfu` too where the peak is known; `mfu_causal` counts padding and every
    pair of a row that is not in the future, as others do.
    """
    seconds = time.monotonic() - self._began
    rates = {
      'step_s': seconds / self._steps,
      'data_wait_s': self._data_wait_s / self._steps,
      'tokens_per_s': self._tokens / seconds,
      'tokens_per_s_per_chip': self._tokens / seconds / self._num_devices,
      'model_flops_per_s': self._flops / seconds,
    }
    if not math.isnan(self._peak):
      causal = self._causal * self._steps / seconds
      rates['mfu'] = rates['model_flops_per_s'] / self._peak
      rates['mfu_causal'] = causal / self._peak
    self._reset()
    return rates

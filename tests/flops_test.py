"""Model FLOPs against products written out, and the rates made of them."""

import types

import numpy as np
import pytest

from longctx_jax import flops
from longctx_jax.config import ModelConfig
from tests import small

CONFIG = small.stage_config()


def test_flops_are_those_of_the_products_written_out():
  model = ModelConfig(
    vocab_size=11,
    embed_dim=6,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    hidden_dim=10,
    tie_embeddings=True,
    norm_eps=1e-6,
    param_dtype='float32',
    compute_dtype='float32',
    block_init_scale=1.0,
    remat='none',
  )
  queries_and_output = 2 * 6 * 4 * 8
  keys_and_values = 2 * 6 * 2 * 8
  mlp = 3 * 6 * 10
  per_token = 3 * (queries_and_output + keys_and_values + mlp) + 6 * 11
  per_pair = 3 * 4 * (8 + 8)
  expected = 3 * 2 * (per_token * 5 + per_pair * 15)
  assert flops.training_flops(model, 5, 15) == expected


def rates(kind, seconds, monkeypatch):
  clock = iter([0.0, seconds, seconds])
  monkeypatch.setattr(flops.time, 'monotonic', lambda: next(clock))
  devices = np.array([types.SimpleNamespace(device_kind=kind)] * 4)
  throughput = flops.Throughput(CONFIG.model, devices, (2, 300))
  throughput.add(100, 1000, 0.25)
  throughput.add(300, 5000, 0.75)
  return throughput.take()


def test_rates_are_sums_over_seconds(monkeypatch):
  total = flops.training_flops(CONFIG.model, 400, 6000)
  got = rates('TPU v5', 2.0, monkeypatch)
  assert got['tokens_per_s'] == 200
  assert got['tokens_per_s_per_chip'] == 50
  assert got['step_s'] == 1
  assert got['data_wait_s'] == 0.5
  assert got['model_flops_per_s'] == pytest.approx(total / 2)
  assert got['mfu'] == pytest.approx(total / 2 / (4 * 459e12))
  # Two steps of two rows of 300 tokens, each read as one whole document.
  causal = flops.training_flops(CONFIG.model, 1200, 4 * 300 * 301 / 2)
  assert got['mfu_causal'] == pytest.approx(causal / 2 / (4 * 459e12))


@pytest.mark.parametrize(
  'kind',
  [
    'NVIDIA A100-SXM4-40GB',
    'NVIDIA A100-SXM4-80GB',
    'NVIDIA A100-PCIE-40GB',
    'NVIDIA A100 80GB PCIe',
  ],
)
def test_every_a100_has_the_same_peak(kind, monkeypatch):
  got = rates(kind, 1.0, monkeypatch)
  assert got['model_flops_per_s'] / got['mfu'] == pytest.approx(4 * 312e12)


def test_no_utilisation_is_claimed_of_an_unknown_device(monkeypatch):
  assert 'mfu' not in rates('cpu', 2.0, monkeypatch)

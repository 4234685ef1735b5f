"""Prefill and decoding on a CPU against Hugging Face's transformers.

    pip install torch==2.13.0 transformers
    python -m benchmarks.generation --out=generation.json

The model is of SmolLM2-135M's shape, with the same random float32 weights for
both; transformers runs it by PyTorch's `sdpa` with its default cache. Each is a
process of its own with all cores, told in turn to read a prompt and to draw
tokens greedily. Prefill is the time to the first token, decoding the tokens per
second after it, both medians; a ratio above 1 says that we are faster. The
tokens must be the same, or it fails. `--peer_python` is an interpreter that has
torch and transformers, if this one has not.
"""

import argparse
import json
import statistics
import subprocess
import sys

from benchmarks.timing import measure_all, report

# What both processes begin with: the weights, named and shaped as ours.
WEIGHTS = """
import json, sys, time
import numpy as np
V, D, L, N, K, H, F = 49152, 576, 30, 9, 3, 64, 1536
BASE, EPS = 100_000.0, 1e-5
SHAPES = {
  'query': (D, N, H), 'key': (D, K, H), 'value': (D, K, H), 'out': (N, H, D),
  'gate': (D, F), 'up': (D, F), 'down': (F, D)}
def draw(seed, *shape):
  rng = np.random.default_rng(seed)
  return rng.standard_normal(shape, np.float32) * np.float32(D ** -0.5)
embedding = draw(0, V, D)
layers = {
  name: draw(i, L, *shape) for i, (name, shape) in enumerate(SHAPES.items(), 1)}
def serve(run):
  print('ready', flush=True)
  for line in sys.stdin:
    T, new = json.loads(line)
    prompt = np.random.default_rng(T).integers(0, V, T)
    began = time.perf_counter()
    tokens, first = [], 0
    for some in run(prompt, new):
      tokens += some
      first = first or time.perf_counter() - began
    rest = time.perf_counter() - began - first
    print(json.dumps([first, (new - 1) / rest, tokens]), flush=True)
"""
OURS = """
import os
os.environ['JAX_PLATFORMS'] = 'cpu'
from longctx_jax.config import ModelConfig, RopeConfig
from longctx_jax.generate import Generator
ones = np.ones((L, D), np.float32)
params = {
  'embedding': embedding, 'final_norm': {'scale': np.ones(D, np.float32)},
  'blocks': {
    'attention': {k: layers[k] for k in ('query', 'key', 'value', 'out')},
    'mlp': {k: layers[k] for k in ('gate', 'up', 'down')},
    'attention_norm': {'scale': ones}, 'mlp_norm': {'scale': ones}}}
config = ModelConfig(
  vocab_size=V, embed_dim=D, num_layers=L, num_heads=N, num_kv_heads=K,
  head_dim=H, hidden_dim=F, tie_embeddings=True, norm_eps=EPS,
  param_dtype='float32', compute_dtype='float32', block_init_scale=1.0,
  remat='none')
generator = Generator(config, RopeConfig(BASE), params)
def run(prompt, new):
  for piece in generator.stream([prompt], max_new_tokens=new):
    yield piece.tokens.tolist()
serve(run)
"""
TRANSFORMERS = """
import torch, transformers
transformers.utils.logging.set_verbosity_error()
torch.set_grad_enabled(False)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
  vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L,
  num_attention_heads=N, num_key_value_heads=K, head_dim=H,
  tie_word_embeddings=True, max_position_embeddings=1 << 20,
  rope_parameters={'rope_type': 'default', 'rope_theta': BASE},
  rms_norm_eps=EPS, attn_implementation='sdpa')).float().eval()
model.model.embed_tokens.weight.copy_(torch.tensor(embedding))
for i, layer in enumerate(model.model.layers):
  for name, theirs in (
    ('query', layer.self_attn.q_proj), ('key', layer.self_attn.k_proj),
    ('value', layer.self_attn.v_proj), ('out', layer.self_attn.o_proj),
    ('gate', layer.mlp.gate_proj), ('up', layer.mlp.up_proj),
    ('down', layer.mlp.down_proj)):
    kernel = torch.tensor(layers[name][i])
    theirs.weight.copy_(kernel.reshape(theirs.weight.shape[::-1]).T)
def run(prompt, new):
  tokens, cache = torch.tensor(prompt)[None], None
  for _ in range(new):
    out = model(
      tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    tokens = out.logits[:, -1].argmax(-1, keepdim=True)
    cache = out.past_key_values
    yield tokens[0].tolist()
serve(run)
"""


class Rival:
  """A process that reads prompts when told to."""

  def __init__(self, python: str, program: str):
    self._process = subprocess.Popen(
      [python, '-c', WEIGHTS + program],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert self._process.stdout.readline() == 'ready\n', 'see above'

  def run(self, T: int, new: int) -> tuple[float, float, list[int]]:
    """(seconds to the first token, tokens per second after it, tokens)."""
    self._process.stdin.write(json.dumps([T, new]) + '\n')
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def end(self) -> None:
    """Lets it go."""
    self._process.stdin.close()
    self._process.wait()


def measure(
  rivals: dict[str, Rival], T: int, new: int, repeats: int
) -> dict[str, object]:
  """One line of the table; the first turn of each does not count."""
  turns = {name: [] for name in rivals}
  for _ in range(repeats + 1):
    for name, rival in rivals.items():
      turns[name].append(rival.run(T, new))
  tokens = [turn[2] for each in turns.values() for turn in each]
  assert all(each == tokens[0] for each in tokens), 'the tokens differ'
  prefill, decode = (
    {
      name: statistics.median(turn[i] for turn in each[1:])
      for name, each in turns.items()
    }
    for i in (0, 1)
  )
  return {
    'T': T,
    'prefill s': prefill['ours'],
    'transformers s': prefill['transformers'],
    'prefill ratio': prefill['transformers'] / prefill['ours'],
    'decode tokens/s': decode['ours'],
    'transformers tokens/s': decode['transformers'],
    'decode ratio': decode['ours'] / decode['transformers'],
  }


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', default='', help='JSON file to write')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--lengths', type=int, nargs='+', default=[2048, 8192])
  parser.add_argument('--new_tokens', type=int, default=65)
  parser.add_argument('--peer_python', default=sys.executable)
  args = parser.parse_args()
  rivals = {
    'ours': Rival(sys.executable, OURS),
    'transformers': Rival(args.peer_python, TRANSFORMERS),
  }
  cases = [(rivals, T, args.new_tokens, args.repeats) for T in args.lengths]
  report(measure_all(measure, cases), args.out)
  for rival in rivals.values():
    rival.end()


if __name__ == '__main__':
  main()

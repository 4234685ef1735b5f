"""Writes reference_logits.json: what transformers makes of the tiny models.

.venv/bin/pip install -e '.[dev,parity]'
.venv/bin/python -m tests.weights.make_reference_logits
"""

import json
from pathlib import Path

import torch
import transformers

from tests.weights import tiny_models

PATH = Path(__file__).with_name('reference_logits.json')
# The end of each row, where all that went before has had its say.
POSITIONS = (0, 1, 17, 46, 47)


def main() -> None:
  """One entry a family: logits at POSITIONS of both rows, rounded."""
  found = {}
  for name in tiny_models.FAMILIES:
    fields = tiny_models.config_of(name)
    config = transformers.AutoConfig.for_model(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    state = model.state_dict()
    made = tiny_models.random_tensors(
      {
        key: tuple(value.shape)
        for key, value in state.items()
        if key != 'lm_head.weight' or not fields['tie_word_embeddings']
      }
    )
    model.load_state_dict(
      {key: torch.tensor(value) for key, value in made.items()}, strict=False
    )
    model.tie_weights()
    with torch.no_grad():
      logits = model(torch.tensor(tiny_models.tokens()).long()).logits
    found[name] = [
      [[round(x, 6) for x in logits[row, t].tolist()] for t in POSITIONS]
      for row in range(2)
    ]
  PATH.write_text(json.dumps({'positions': POSITIONS, 'logits': found}))


if __name__ == '__main__':
  main()

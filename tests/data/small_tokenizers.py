"""Small tokenizers of other people's kinds, made in a moment."""

import io
import json

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

# Of Llama-3's tokenizer.json, pre_tokenizer.
LLAMA3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
SPECIAL = (
  *('<|begin_of_text|>', '<|end_of_text|>', '<s>', '</s>'),
  *('<|im_start|>', '<|im_end|>', '[USER]', '[BOT]', '[SEP]'),
  *('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'),
  *('<|user|>', '<|assistant|>', '<|end|>'),
)
TEXTS = [
  'What is 2 + 2? It is 4.\n\nHello there, how are you?\n  Fine.\n',
  'user assistant system <|im_end|> [SEP] </s>\n\n\n def f(x):\n    return x\n',
]


def byte_level_bpe(special=SPECIAL):
  """As Llama-3 and Qwen: byte-level BPE with special tokens behind it."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS * 5, trainer)
  tokenizer.add_special_tokens(list(special))
  return tokenizer


def write_folder(directory, tokenizer=None, **config):
  """A Hugging Face model's folder: tokenizer.json and tokenizer_config.json."""
  directory.mkdir(parents=True, exist_ok=True)
  (tokenizer or byte_level_bpe()).save(str(directory / 'tokenizer.json'))
  (directory / 'tokenizer_config.json').write_text(json.dumps(config))
  return directory


def write_sentencepiece(path, **options):
  """A model as others train them: a space before every text, NFKC."""
  model = io.BytesIO()
  options = {
    'vocab_size': 330,
    'byte_fallback': True,
    'minloglevel': 2,
    **options,
  }
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS * 5),
    model_writer=model,
    model_type='bpe',
    **options,
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(model.getvalue())
  return path

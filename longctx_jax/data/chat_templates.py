r"""Chat templates: what stands around each turn of a conversation.

A template is text with marks in it: `{text}` is the turn, `{bos}` and `{eos}`
are the tokenizer's begin and end of a document, and the names in `control` are
single tokens. Everything else is ordinary text. Each part but the answer
begins with a token or stands behind one, so that no text runs into the next.
Chatml, for one:

    <|im_start|>user\nHi<|im_end|>\n <|im_start|>assistant\n Hello<|im_end|> \n
    user                             before_answer           answer       after
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """The markers of one way to write a conversation."""

  # Names of tokens that no text may encode to.
  control: tuple[str, ...]
  # How a conversation begins, without and with a system's text.
  opening: str
  opening_with_system: str
  user: str
  # Ends where the model begins to write.
  before_answer: str
  # What the model writes, and learns to: the text and how it ends.
  answer: str
  after_answer: str = ''
  # What goes before every text.
  text_prefix: str = ''
  # Whether white space around a text is taken off.
  strip: bool = False


TEMPLATES = {
  # ours. A text follows a space, so that a word is the same token wherever it
  # stands in a sentence, a table or an answer.
  'plain': ChatTemplate(
    control=('<|user|>', '<|assistant|>', '<|end|>'),
    opening='{bos}',
    opening_with_system='{bos}{text}\n',
    user='<|user|>{text}',
    before_answer='<|assistant|>',
    answer='{text}<|end|>',
    text_prefix=' ',
  ),
  # As SmolLM2 and Qwen2.5 have it in tokenizer_config.json, chat_template; but
  # no system's text is made up where a conversation has none.
  'chatml': ChatTemplate(
    control=('<|im_start|>', '<|im_end|>'),
    opening='',
    opening_with_system='<|im_start|>system\n{text}<|im_end|>\n',
    user='<|im_start|>user\n{text}<|im_end|>\n',
    before_answer='<|im_start|>assistant\n',
    answer='{text}<|im_end|>',
    after_answer='\n',
  ),
  # Meta-Llama-3-8B-Instruct, tokenizer_config.json, chat_template.
  'llama3': ChatTemplate(
    control=('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'),
    opening='{bos}',
    opening_with_system=(
      '{bos}<|start_header_id|>system<|end_header_id|>\n\n{text}<|eot_id|>'
    ),
    user='<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>',
    before_answer='<|start_header_id|>assistant<|end_header_id|>\n\n',
    answer='{text}<|eot_id|>',
    strip=True,
  ),
  # Skywork-13B-Chat. A user's turn as in README.md of SkyworkAI/Skywork
  # (special_encode: eos, bos, [USER]text[SEP][BOT]; text.strip()); the system's
  # text and the end of an answer as in modelscope/ms-swift (template skywork:
  # <s>system</s>..., [SEP]</s>). Neither shows a second turn: that it follows
  # the </s> of the first is ours.
  'skywork': ChatTemplate(
    control=('[USER]', '[BOT]', '[SEP]'),
    opening='{eos}',
    opening_with_system='{bos}{text}{eos}',
    user='{bos}[USER]{text}[SEP]',
    before_answer='[BOT]',
    answer='{text}[SEP]{eos}',
    strip=True,
  ),
}

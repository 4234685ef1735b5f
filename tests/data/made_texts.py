"""Made-up documents, and corpora of them."""

from tests import small

WORDS = [
  *(
    'the',
    'context',
    'long',
    'short',
    'needle',
    'hay',
    'stack',
    'row',
    'token',
  ),
  *(
    'model',
    'loss',
    'train',
    'reads',
    'writes',
    'finds',
    'keeps',
    'far',
    'one',
  ),
]


def config_of(texts, **changes):
  fields = {
    'sources': {
      'text': {'kind': 'text_files', 'max_chars': 10**6, 'path': str(texts)}
    },
    'vocab_size': 400,
    'heldout_frac': 0.2,
    'conversations': {'extract': 20, 'needle': 20},
    'max_conversation_len': 2000,
  }
  return small.corpus_config(**{**fields, **changes})


def fingerprints(corpus):
  stores = (corpus.documents, corpus.heldout, corpus.conversations)
  return [corpus.tokenizer.fingerprint, *(s.fingerprint for s in stores)]


def names_of(store):
  return [store.name(i) for i in range(len(store))]


def read(store, document):
  return store.read(document, 0, int(store.lengths[document]))

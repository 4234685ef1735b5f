"""Which documents there are to inspect, and what became of the others."""

from longctx_jax.data.corpus_settings import corpus_settings
from longctx_jax.data.counts import HELDOUT, Counts
from longctx_jax.inspection.corpus_rules import corpus_rules
from longctx_jax.inspection.rows import inspect_step
from tests import small


def rules_of(accounts=(), **changes):
  settings = corpus_settings(small.corpus_config(**changes), 0)['corpus']
  return [rule for _, rule in corpus_rules(settings, dict(accounts))]


def test_what_decides_is_named_and_what_does_not_is_left_out():
  of = 'max_chars: 60,000 of every source'
  held = f'{of}; heldout_frac=0.2 kept from training; filters: '
  assert rules_of() == [held + 'min_chars=200']
  assert rules_of(filters={'min_chars': 0}) == [held + 'none']
  filters = {'deduplicate': True, 'max_tokens': 700, 'too_long': 'drop'}
  assert rules_of(filters=filters) == [
    held + 'deduplicate=True, min_chars=200, max_tokens=700, too_long=drop'
  ]
  sources = {
    name: {'kind': 'docs', 'max_chars': n}
    for name, n in (('a', 9), ('b', 8_000), ('c', 9))
  }
  (rule,) = rules_of(sources=sources)
  assert rule.startswith('max_chars: 9 of a and c, 8,000 of b; heldout_frac')


def test_what_became_of_documents_is_that_of_all_sources():
  counts = Counts()
  for fate in (HELDOUT, 'bad_json', 'too_short', 'too_short'):
    counts.see(10)
    counts.drop(fate, 10)
  for _ in range(2):
    counts.see(10)
    counts.keep(10)
  _, became = rules_of({'code': counts, 'docs': counts})
  assert became == (
    '12 seen: 4 to train on, 2 held out, 4 too short, 2 bad json'
  )


def test_an_inspection_says_it_of_its_corpus(corpus):
  rules = inspect_step(small.stage_config(), corpus).corpus
  documents, became = (rule for _, rule in rules)
  assert '60,000 of every source' in documents
  assert f': {len(corpus.documents)} to train on, ' in became
  assert f' {len(corpus.heldout)} held out' in became

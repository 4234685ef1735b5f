"""Needles: drawn hiding places, facts that can be told apart."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.data.needles import draw_needles, hide_needles


def test_needles_are_hidden_as_drawn():
  haystack = ['h0', 'h1', 'h2', 'h3']
  needles = [['m'], ['n', 'n'], ['k'], ['l']]
  expected = 'k h0 n n l h1 h2 h3 m'
  assert hide_needles(haystack, needles, [4, 1, 0, 1]) == expected.split()


@given(
  st.lists(st.integers(0, 99), max_size=8),
  st.lists(st.lists(st.integers(100, 999), max_size=3), max_size=4),
  st.data(),
)
def test_haystack_and_needles_are_both_whole(haystack, needles, data):
  n = len(haystack)
  place = st.integers(0, n)
  places = data.draw(
    st.lists(place, min_size=len(needles), max_size=len(needles))
  )
  hidden = hide_needles(haystack, needles, places)
  assert [x for x in hidden if x < 100] == haystack
  order = sorted(range(len(needles)), key=lambda j: places[j])
  assert [x for x in hidden if x >= 100] == [
    x for j in order for x in needles[j]
  ]


def test_a_needle_answers_its_own_question_alone():
  needles = draw_needles(np.random.default_rng(0), 40)
  for needle in needles:
    key = needle.question.split()[-1]
    assert needle.sentence == f' The magic word: {needle.answer}.'
    assert needle.answer.split()[0] == key
    assert needle.question == f'What is the magic word of {key}'
  assert len({needle.question for needle in needles}) == 40
  # Values differ too: a wrong needle's value is a wrong answer.
  assert len({needle.answer.split()[-1] for needle in needles}) == 40

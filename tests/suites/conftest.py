"""The tiny models of tests/weights."""

from tests.weights.conftest import make_folder
from tests.weights.loaded_model_test import folder

__all__ = ['folder', 'make_folder']

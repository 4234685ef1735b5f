"""Long-context training of language models in JAX: LongSkywork and ProLong."""

__version__ = '0.1.0'

"""LongSkywork, arXiv:2406.00605."""

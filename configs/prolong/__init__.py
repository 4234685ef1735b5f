"""ProLong, arXiv:2410.02660."""

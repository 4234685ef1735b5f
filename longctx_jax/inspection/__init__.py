"""`longctx inspect`: rows, masks and counts, for looking at."""

"""Experiments: one file, one stage of one paper."""

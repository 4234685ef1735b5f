"""Attention of parts of rows, written for one kind of accelerator each."""

"""Pretrained models in and out: other people's files, our parameters."""

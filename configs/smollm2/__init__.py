"""SmolLM2-135M-Instruct, a small pretrained model that PyPI has."""

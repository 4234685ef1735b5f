"""Public long-context tests for any model: prompts, scores, a page."""

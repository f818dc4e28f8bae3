"""Training of the three demonstration models that ship with llmhost (see docs/demo-models.md)."""

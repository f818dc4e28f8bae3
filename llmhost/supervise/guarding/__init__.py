"""What `guard.py` is made of. Standard library only, nothing else of llmhost: a guard lives beside every engine."""

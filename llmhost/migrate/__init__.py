"""Moving in: compose files and supervisord programs become an llmhost.yaml, with a report of what became what."""

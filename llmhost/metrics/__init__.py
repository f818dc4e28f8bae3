"""What an operator watches: one page of metrics, its targets, rules and dashboard, and the figures of `llmhost top`.

The exporter (`exporter.py` and what it imports) is a program of its own and runs on the standard library alone, with
little of it, like the guard: `text`, `ask`, `replicas`, `host`, `nvml`, `page`, `server`.
"""

"""All nodes of an llmhost.yaml, used from one of them: over ssh, in parallel, without a control plane."""

"""External storage: what each node has, whether two fit together, and the sync of one, step by step."""

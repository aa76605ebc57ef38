"""Who belongs to the pair: one-time tokens, certificates, joining, renewal."""

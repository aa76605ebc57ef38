"""Full backup and backup packages: the two nodes are provably the same, and can be exported and restored."""

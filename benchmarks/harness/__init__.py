"""What all benchmarks share: results, places and pairs, meters of processes, writers and observers."""

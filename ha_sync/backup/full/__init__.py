"""The full backup: compares the content of every dataset on both nodes, repairs what differs, verifies the repair."""

"""What is known of a tree of files whichever side looks at it: confinement, blocks, metadata, watches."""

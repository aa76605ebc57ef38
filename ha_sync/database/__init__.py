"""What is known of a SQLite file whichever side looks at it: schema, keys, images, lock-free copies."""

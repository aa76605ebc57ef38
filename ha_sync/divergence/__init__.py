"""What an Active wrote and its peer never got: kept before it is replaced, merged by what it is, shown to a person."""

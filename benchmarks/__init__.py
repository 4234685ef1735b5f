"""One script for each number that the README quotes."""

"""Command line: parse arguments, call the public API."""

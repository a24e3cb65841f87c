"""Answers that must satisfy a JSON Schema: what the schema allows as a tree, as a grammar, and as a small value."""

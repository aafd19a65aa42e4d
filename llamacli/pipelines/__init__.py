"""The tasks of the documentation of transformers: text or chat in, plain dicts out."""

"""Where the documentation of `transformers` looks for things; none is defined here."""

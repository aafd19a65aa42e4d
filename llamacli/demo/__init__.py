"""The embedded demo model: a small Llama, the corpus and the script that trained it."""

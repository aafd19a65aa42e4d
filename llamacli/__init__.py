"""llamacli: the command-line home of the Llama models."""

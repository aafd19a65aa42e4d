"""CPU kernels in C: sources, binding, and the decode step built on them."""

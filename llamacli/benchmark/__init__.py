"""How fast a model runs, and how fast this machine could run it: `cases` first, then `measure`."""

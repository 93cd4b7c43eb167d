"""The catalogue: what boards and links are, in figures with sources."""

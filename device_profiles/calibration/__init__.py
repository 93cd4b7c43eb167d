"""What this host can do, and what of it stands for a board."""

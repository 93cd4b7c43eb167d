"""The balancing server: who trains what, and what becomes of it."""

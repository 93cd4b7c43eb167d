"""Device processes on this machine, there and away as planned."""

"""Every technique and peer, as data: how it is made, and the grid of its settings."""

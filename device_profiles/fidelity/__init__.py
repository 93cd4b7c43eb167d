"""What was asked of an emulation, and what it got."""

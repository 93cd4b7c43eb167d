"""The model on its way to the devices: versions, frames, and who holds what."""

"""What a device is and what data it has; fleets of devices on this machine."""

"""What runs on a device. Imports numpy, msgpack, paho-mqtt and psutil; never the server."""

# As in pyproject.toml. Asking the installed package would import what parses e-mail: 3 MiB.
__version__ = "0.1.0"

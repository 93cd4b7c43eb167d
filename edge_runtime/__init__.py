"""What runs on a device. Imports numpy, msgpack, paho-mqtt and psutil; never the server."""

"""Packets over MQTT, or in memory, with every byte counted."""

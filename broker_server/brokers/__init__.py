"""MQTT brokers: start one, find out what it can take, read what it counted."""

"""The errors that flexmoe raises on purpose.

::

    FlexmoeError            anything that a user can mend; the command line prints it as one line
    |- ConfigError          an experiment file, option or flag
    |- DataError            a data set or a device's shard
    |- BrokerError          the MQTT broker: unreachable, port in use, refused
    |- WireError            a message, chunk or blob that breaks the protocol
    |- ProgramError         a program that cannot be exported, loaded or run
    |- FleetError           the fleet as a whole: devices missing, quorum not met
    `- EmulationError       what a profile asks for cannot be enforced on this host

Every message says what was expected, what came, and what to do about it.
"""


class FlexmoeError(Exception):
    """Base of all errors that flexmoe raises on purpose."""


class ConfigError(FlexmoeError):
    """A value in an experiment file or on the command line cannot be used."""


class DataError(FlexmoeError):
    """A data set or shard is missing or malformed."""


class BrokerError(FlexmoeError):
    """The MQTT broker cannot be started or reached."""


class WireError(FlexmoeError):
    """Bytes from the network break the protocol; ``reason`` is a short name to count them by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class ProgramError(FlexmoeError):
    """A program cannot be exported, loaded or run."""


class FleetError(FlexmoeError):
    """The fleet cannot do what the round needs."""


class EmulationError(FlexmoeError):
    """What a profile asks for cannot be enforced on this host."""

"""The version of the contract, and what host and plugin make of a difference."""

from inferplane.errors import PluginError

Version = tuple[int, int]

CONTRACT: Version = (1, 0)
"""(major, minor). A minor adds optional things; a major changes or removes."""


def negotiate(plugin: str, lowest: Version, highest: Version) -> tuple[Version, str]:
    """The contract version to speak with a plugin, and a note when it is not the plugin's newest.

    Raises PluginError if the ranges do not overlap.
    """
    if lowest > CONTRACT or highest[0] < CONTRACT[0]:
        newer = lowest > CONTRACT
        raise PluginError(
            f"{plugin} needs contract {_text(lowest)} to {_text(highest)}, this host has "
            f"{_text(CONTRACT)}: upgrade {'inferplane' if newer else plugin}"
        )
    if highest > CONTRACT:
        note = f"built for contract {_text(highest)}, host has {_text(CONTRACT)}: using the host's"
        return CONTRACT, note
    return highest, ""


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"

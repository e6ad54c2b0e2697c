"""The command line: `seamark <group> <verb>`. A face: it parses, calls one function of a room, prints and saves."""

from seamark.cli.main import main

__all__ = ["main"]

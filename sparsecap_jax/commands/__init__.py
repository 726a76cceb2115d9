"""Implementations of the scripts in `launch/`, one file a command."""

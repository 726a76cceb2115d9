"""What the scripts in `launch/` call, one file a command."""

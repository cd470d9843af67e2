"""The commands: parse, call the library, save."""

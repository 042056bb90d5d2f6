"""The commands, one module each. `surgenet_cli` at the top level lists them and imports the one that is requested."""

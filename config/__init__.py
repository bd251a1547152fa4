"""What a run is: the schema, the command line, and one preset a file."""

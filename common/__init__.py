"""What all areas share: start and end of a command, terminal output, files, memory, this installation."""

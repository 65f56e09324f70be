"""What every area uses and no area owns: the start and end of a command, terminal output, paths, memory, files."""

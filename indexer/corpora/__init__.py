"""What can be indexed: folders, containers, lists, URLs."""

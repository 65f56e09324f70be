"""What a server does, without HTTP: queries in batches, the newest generation of an index, thumbnails."""

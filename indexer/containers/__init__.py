"""Files that hold many images: tar, zip, Parquet, Arrow, video."""

"""What a query says: expressions, characters as they were meant, languages."""

"""Operations on indexes: build, update, remove, compact, repair, re-encode, export."""

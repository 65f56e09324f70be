"""Indexes in other engines: exported to Lance, PostgreSQL or Milvus, and searched there."""

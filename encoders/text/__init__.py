"""Tokenisation and text towers."""

"""nano's data: emoji artwork and annotations from packages, composed scenes, captions in many languages."""

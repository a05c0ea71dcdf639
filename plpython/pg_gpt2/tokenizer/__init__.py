"""Text to tokens and back: byte-pair encoding, how a vocabulary is learned, and vocabularies as rows."""

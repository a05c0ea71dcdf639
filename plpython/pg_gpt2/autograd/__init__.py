"""Tapes as rows: recorded by SQL, differentiated, run again and compared, drawn."""

"""Runs over stored data: sessions, their log, audit and replay."""

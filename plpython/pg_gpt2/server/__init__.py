"""Everything that talks to PostgreSQL. Nothing outside this folder imports it."""

"""Files, tables and corpora to texts and records, whatever their format."""

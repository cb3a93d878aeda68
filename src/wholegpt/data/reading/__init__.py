"""Read files, tables and corpora of any format as texts and records."""

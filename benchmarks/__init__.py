"""Long measurements; see README.md here."""

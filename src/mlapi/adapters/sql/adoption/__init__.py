"""Take over the database of the legacy application."""

"""SQLite: one file and one writer at a time. Commands are applied one by one, which takes about 10 us each."""

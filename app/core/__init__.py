"""What everything is made of: settings, errors, tables, database, storage, queue. Imports nothing of ours."""

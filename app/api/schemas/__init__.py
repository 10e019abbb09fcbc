"""The objects of the wire, one file a noun: what a row becomes in an answer. No query, no decision here."""

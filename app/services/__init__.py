"""What the product can do: plain functions on a session that never commit. Called by faces and worker."""

"""What the product can do: plain functions on a session, never committing. For api, dashboard and worker."""

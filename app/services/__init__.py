"""What the product can do: plain functions on a session, which never commit. Called by api, dashboard and worker."""

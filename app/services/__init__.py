"""What the product can do: plain functions on a session, which never commit. Every face calls them."""

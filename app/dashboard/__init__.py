"""The dashboard: what a person sees. Pages over the same services the API uses; it imports no other face."""

"""What OpenAI's SDKs see: one route file a noun, over the services. It knows no HTML and no worker."""

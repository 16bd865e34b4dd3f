"""The HTTP server: OpenAI's API and the native one over an engine client. Imports no torch."""

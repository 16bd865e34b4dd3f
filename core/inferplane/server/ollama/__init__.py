"""Ollama's API over a Turn."""

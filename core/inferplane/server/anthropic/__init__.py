"""Anthropic's messages API over a Turn."""

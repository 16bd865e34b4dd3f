"""OpenAI's responses API over a Turn."""

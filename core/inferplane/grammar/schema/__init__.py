"""JSON schemas rewritten, without changing what they allow, into what a grammar engine enforces."""

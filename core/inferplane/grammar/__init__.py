"""Constraints on output: from a JSON schema, pattern or grammar to the tokens allowed next."""

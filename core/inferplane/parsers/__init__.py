"""Model text to events: tool calls and reasoning, in the formats that models write them."""

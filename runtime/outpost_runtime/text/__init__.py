"""The text engine: prompts in, tokens out, as they are made."""

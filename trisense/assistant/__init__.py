"""The assistant: a conversation in, an answer out."""

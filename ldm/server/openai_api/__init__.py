"""OpenAI's image interface: its bodies and forms, its answers and its events."""

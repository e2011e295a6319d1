"""A result said once: its content, and terminal, HTML, Markdown, JSON and JUnit made of it."""

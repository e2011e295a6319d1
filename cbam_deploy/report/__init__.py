"""Results as JSON, JUnit and self-contained HTML."""

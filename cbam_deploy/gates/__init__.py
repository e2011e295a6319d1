"""The attention gate as data: its description, the names and inputs of its operators."""

"""Pictures in, batches out: image folders, built-in sets, one preprocessing."""

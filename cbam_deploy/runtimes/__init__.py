"""One class per way to run an artefact, one interface."""

"""Integrations: the few lines that fit a framework, one module each, named after it."""

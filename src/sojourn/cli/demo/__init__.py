"""The demo: a small site with durable sessions, `sojourn demo`."""

"""The pure core: plain data in, plain data out; time and randomness are arguments; no I/O."""

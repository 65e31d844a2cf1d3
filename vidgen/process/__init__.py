"""The life of a process: its flags, start, signals, hangs, end, and the machine it runs on."""

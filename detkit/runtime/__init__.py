"""The machine: devices, processes, memory, signals, timing."""

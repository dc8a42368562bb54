"""The log: keys, the Redis function library and its wrapper, reading, leasing, and FastStream subscribers over it."""
